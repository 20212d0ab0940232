//! The reference evaluator: runs a module on concrete values.
