//! Compiles the digit classifier into `OUT_DIR`.

fn main() -> Result<(), lapidary::BuildError> {
    lapidary::Build::new("../mnist/mnist-8.onnx").compile("digits")
}
