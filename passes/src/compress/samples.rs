//! What compression asks of whoever can run programs: the user's data goes in, numbers come out.
//!
//! This crate writes graphs and cannot run them fast; its caller compiles them. Everything that calibration wants to
//! know is therefore said as a graph whose outputs are small, or are used one after the other.

use lapidary_ir::Module;

/// Why a program could not be made or run, for people.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The data that a user gave, as inputs of the model: samples that all have the same shapes.
pub trait Samples {
    /// How many there are; not 0.
    fn count(&self) -> usize;

    /// A checksum of all of them.
    fn key(&self) -> u64;

    /// Compiles a module for the samples. Its inputs are the model's, then values of `f32` of known shapes (*extras*); its
    /// outputs are all of `f32`.
    fn prepare(&self, module: Module) -> Result<Box<dyn Program + '_>, Failure>;
}

/// A compiled module.
pub trait Program {
    /// Gives extra input `index` these elements, for all runs to come.
    fn set(&mut self, index: usize, values: &[f32]) -> Result<(), Failure>;

    /// Runs on a sample; `see` is shown the number and the elements of each output, in order.
    fn run(
        &mut self,
        sample: usize,
        see: &mut dyn FnMut(usize, &[f32]) -> Result<(), Failure>,
    ) -> Result<(), Failure>;
}

/// Copies of all outputs of a run.
pub(super) fn outputs(program: &mut dyn Program, sample: usize) -> Result<Vec<Vec<f32>>, Failure> {
    let mut found = vec![];
    program.run(sample, &mut |_, values| {
        found.push(values.to_vec());
        Ok(())
    })?;
    Ok(found)
}
