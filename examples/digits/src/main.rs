//! Reads handwritten digits with a model that is part of the program: `cargo run --release -p digits`.

use lapidary_runtime::{RunError, include_model};
use std::time::Instant;

include_model!(digits);

/// Images and the scores of the reference, as tensors in ONNX's file format.
const DIGITS: [(&[u8], &[u8]); 3] = [
    (
        include_bytes!("../../mnist/digit_0/input_0.pb"),
        include_bytes!("../../mnist/digit_0/output_0.pb"),
    ),
    (
        include_bytes!("../../mnist/digit_1/input_0.pb"),
        include_bytes!("../../mnist/digit_1/output_0.pb"),
    ),
    (
        include_bytes!("../../mnist/digit_2/input_0.pb"),
        include_bytes!("../../mnist/digit_2/output_0.pb"),
    ),
];

fn main() -> Result<(), RunError> {
    let start = Instant::now();
    let model = digits::Model::new()?;
    println!("loaded in {:.2?}", start.elapsed());
    for (image, reference) in DIGITS {
        let (pixels, reference) = (floats::<784>(image)?, floats::<10>(reference)?);
        let start = Instant::now();
        let inputs = digits::Inputs { input3: &pixels };
        let scores = model.run(&inputs)?.plus214_output_0;
        let took = start.elapsed();
        println!(
            "reads {}, the reference {}; {took:.2?}",
            best(&scores),
            best(&reference)
        );
    }
    Ok(())
}

/// The elements of a tensor.
fn floats<const N: usize>(file: &[u8]) -> Result<[f32; N], RunError> {
    let tensor = lapidary_runtime::io::pb::read_tensor(file)?;
    let (elements, _) = tensor.bytes().as_chunks();
    let mut floats = [0.0; N];
    for (to, from) in floats.iter_mut().zip(elements) {
        *to = f32::from_le_bytes(*from);
    }
    Ok(floats)
}

/// The digit with the highest score.
fn best(scores: &[f32; 10]) -> usize {
    let highest = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    highest.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_is_read_as_by_the_reference() {
        assert_eq!(digits::Inputs::INPUT3_DIMS, [1, 1, 28, 28]);
        let model = digits::Model::new().expect("it loads");
        for (image, reference) in DIGITS {
            let pixels = floats(image).expect("an image");
            let inputs = digits::Inputs { input3: &pixels };
            let scores = model.run(&inputs).expect("it runs").plus214_output_0;
            let reference = floats::<10>(reference).expect("scores");
            assert_eq!(best(&scores), best(&reference));
            for (got, want) in scores.iter().zip(reference) {
                assert!(
                    (got - want).abs() <= 1e-4 * want.abs().max(100.0),
                    "{got} {want}"
                );
            }
        }
    }
}
