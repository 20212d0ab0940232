//! Program
