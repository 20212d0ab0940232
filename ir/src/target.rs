//! What the compiler knows of a target: vector width, registers, caches, threads.
