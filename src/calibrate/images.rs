//! Pictures as samples of a model that looks at them.
//!
//! A picture is scaled until its shorter side fits, cut to the input's size around its middle, and made numbers: for inputs of
//! floats `(v / 255 - mean) / deviation` of each channel, for inputs of bytes `v`.

use super::{Calibration, spread};
use crate::error::Error;
use image::imageops::FilterType;
use image::{DynamicImage, ImageReader};
use lapidary_ir::{ElemType, Module, ValueId};
use lapidary_runtime::bytes::Bytes;
use lapidary_runtime::{Tensor, Value};
use std::path::{Path, PathBuf};

/// How names of pictures end.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// How numbers of channels are shifted and scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Of each channel, of numbers from 0 to 1.
    pub mean: [f32; 3],
    /// Of each channel.
    pub deviation: [f32; 3],
}

impl Default for Normalization {
    /// Those of ImageNet, which most models for pictures were trained with.
    fn default() -> Normalization {
        Normalization {
            mean: [0.485, 0.456, 0.406],
            deviation: [0.229, 0.224, 0.225],
        }
    }
}

/// What a model takes: one input of pictures.
struct Port {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    channels_last: bool,
    elem: ElemType,
}

/// True for a picture, by its name.
pub(super) fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str());
    ending.is_some_and(|e| ENDINGS.contains(&e.to_ascii_lowercase().as_str()))
}

/// Samples of these pictures: of each batch one.
pub(super) fn samples(
    of: &Calibration,
    module: &Module,
    mut pictures: Vec<PathBuf>,
) -> Result<Vec<Vec<Value>>, Error> {
    let port = port(module).map_err(|reason| of.wrong(reason))?;
    pictures.sort();
    let pictures = spread(pictures, of.samples.saturating_mul(port.batch));
    let read = |path: &PathBuf| {
        let failed = |reason: String| of.wrong(format!("`{}` {reason}", path.display()));
        let reader = ImageReader::open(path).map_err(|e| failed(format!("cannot be read: {e}")))?;
        let picture = reader
            .decode()
            .map_err(|e| failed(format!("is no picture that can be read: {e}")))?;
        Ok(port.bytes(&picture, &of.normalization))
    };
    let whole = pictures.chunks_exact(port.batch);
    whole
        .map(|part| {
            let bytes = part.iter().map(read).collect::<Result<Vec<_>, Error>>()?;
            let tensor = Bytes::copy_of(&bytes.concat())
                .and_then(|b| Tensor::from_bytes(port.elem, port.dims(), b))
                .map_err(|error| Error::Run {
                    file: of.data.display().to_string(),
                    error,
                })?;
            Ok(vec![tensor.into()])
        })
        .collect()
}

fn port(module: &Module) -> Result<Port, String> {
    let unfit = |what: &str| {
        Err(format!(
            "has pictures, but the model {what}; pictures are for models of one input `[batch, channels, height, width]`, or with \
             channels last, of bytes or f32 and of known size (`--dim`)"
        ))
    };
    let &[input] = &module.top().inputs[..] else {
        return unfit("takes several inputs");
    };
    let dims = known(module, input);
    let elem = module.value(input).ty.elem();
    let Some(elem) = elem.filter(|e| matches!(e, ElemType::F32 | ElemType::U8)) else {
        return unfit("takes other numbers");
    };
    let of = |batch: Option<usize>, channels, height, width, channels_last| {
        Ok(Port {
            batch: batch.unwrap_or(1).max(1),
            channels,
            height,
            width,
            channels_last,
            elem,
        })
    };
    match dims[..] {
        [batch, Some(c @ (1 | 3)), Some(h), Some(w)] if h * w > 0 => of(batch, c, h, w, false),
        [batch, Some(h), Some(w), Some(c @ (1 | 3))] if h * w > 0 => of(batch, c, h, w, true),
        _ => unfit("takes something of another shape"),
    }
}

fn known(module: &Module, v: ValueId) -> Vec<Option<usize>> {
    let shape = module.value(v).ty.shape().unwrap_or_default();
    let known = |d: Option<i64>| d.and_then(|n| usize::try_from(n).ok());
    shape.iter().map(|d| known(d.as_const())).collect()
}

impl Port {
    fn dims(&self) -> Vec<usize> {
        match self.channels_last {
            true => vec![self.batch, self.height, self.width, self.channels],
            false => vec![self.batch, self.channels, self.height, self.width],
        }
    }

    /// A picture as the model takes it.
    fn bytes(&self, picture: &DynamicImage, normalization: &Normalization) -> Vec<u8> {
        let (width, height) = (self.width as u32, self.height as u32);
        let fitted = picture.resize_to_fill(width, height, FilterType::Triangle);
        let levels = match self.channels {
            1 => fitted.to_luma8().into_raw(),
            _ => fitted.to_rgb8().into_raw(),
        };
        let (channels, area) = (self.channels, self.height * self.width);
        let place = |i: usize| match self.channels_last {
            true => (i, i % channels),
            false => (i % area * channels + i / area, i / area),
        };
        let numbers = (0..area * channels).map(|i| {
            let (at, channel) = place(i);
            (levels[at], channel)
        });
        match self.elem {
            ElemType::U8 => numbers.map(|(v, _)| v).collect(),
            _ => {
                let number = |(v, channel): (u8, usize)| {
                    let n = normalization;
                    ((f32::from(v) / 255.0 - n.mean[channel]) / n.deviation[channel]).to_le_bytes()
                };
                numbers.flat_map(number).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(channels: usize, channels_last: bool, elem: ElemType) -> Port {
        Port {
            batch: 1,
            channels,
            height: 2,
            width: 3,
            channels_last,
            elem,
        }
    }

    /// Twice as large as the input, in even squares: scaling gives the squares' values.
    fn picture() -> DynamicImage {
        let of = |x: u32, y: u32| image::Rgb([(10 * (x / 2)) as u8, (100 * (y / 2)) as u8, 255]);
        DynamicImage::ImageRgb8(image::ImageBuffer::from_fn(6, 4, of))
    }

    #[test]
    fn channels_lie_where_the_model_reads_them() {
        let plain = Normalization::default();
        let last = port(3, true, ElemType::U8).bytes(&picture(), &plain);
        let first = port(3, false, ElemType::U8).bytes(&picture(), &plain);
        assert_eq!((last.len(), first.len()), (18, 18));
        for (i, &v) in last.iter().enumerate() {
            assert_eq!(v, first[i % 3 * 6 + i / 3]);
        }
        assert!(first[12..].iter().all(|&v| v == 255), "blue is last");
        assert!(first[0] < first[2] && first[6] < first[9]);
    }

    #[test]
    fn floats_are_normalized_channel_by_channel() {
        let n = Normalization {
            mean: [0.0, 0.5, 1.0],
            deviation: [1.0, 1.0, 0.5],
        };
        let levels = port(3, false, ElemType::U8).bytes(&picture(), &n);
        let bytes = port(3, false, ElemType::F32).bytes(&picture(), &n);
        let numbers = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b));
        for (i, v) in numbers.enumerate() {
            let want = (f32::from(levels[i]) / 255.0 - n.mean[i / 6]) / n.deviation[i / 6];
            assert_eq!(v, want);
        }
        assert_eq!(port(1, false, ElemType::U8).bytes(&picture(), &n).len(), 6);
    }
}
