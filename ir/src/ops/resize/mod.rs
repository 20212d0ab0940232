//! Resampling of images: resize, sampling at a grid, affine grids.

mod coordinates;
mod grid;
mod resample;

use super::OpDef;

/// The family's ops.
pub static OPS: &[&OpDef] = &[&resample::RESIZE, &grid::GRID_SAMPLE, &grid::AFFINE_GRID];
