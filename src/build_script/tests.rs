//! What a build script sees: files, lines for cargo, work that is not repeated, messages.

use super::*;
use lapidary_abi::image::Trailer;
use lapidary_frontend::onnx::proto::{
    EXTERNAL, GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    ValueInfoProto, encode,
};
use lapidary_runtime::io::folder::{Kind, write_outputs};
use std::time::SystemTime;

struct Script {
    folder: tempfile::TempDir,
    cargo: Cargo,
    lines: Vec<String>,
}

impl Script {
    fn new(target: &str) -> Script {
        let folder = tempfile::tempdir().expect("a folder");
        let out_dir = folder.path().join("out");
        fs::create_dir(&out_dir).expect("a folder");
        Script {
            cargo: Cargo {
                out_dir,
                target: target.to_owned(),
                features: vec![],
            },
            folder,
            lines: vec![],
        }
    }

    /// A model whose output is a weight in a file beside it.
    fn model(&self) -> PathBuf {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.into(),
            value: value.into(),
        };
        let weight = TensorProto {
            name: "y".into(),
            dims: vec![2],
            data_type: Some(1),
            data_location: Some(EXTERNAL),
            external_data: vec![entry("location", "weights.bin")],
            ..TensorProto::default()
        };
        let output = ValueInfoProto {
            name: "y".into(),
            r#type: None,
        };
        let opset = OperatorSetIdProto {
            version: Some(21),
            ..OperatorSetIdProto::default()
        };
        let model = ModelProto {
            ir_version: Some(10),
            opset_import: vec![opset],
            graph: Some(GraphProto {
                initializer: vec![weight],
                output: vec![output],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let path = self.folder.path().join("model.onnx");
        fs::write(&path, encode(&model)).expect("it is written");
        fs::write(self.weights(), [0; 8]).expect("it is written");
        path
    }

    fn weights(&self) -> PathBuf {
        self.folder.path().join("weights.bin")
    }

    fn out(&self, name: &str) -> PathBuf {
        self.cargo.out_dir.join(name)
    }

    fn compile(&mut self, build: &Build) -> Result<bool, BuildError> {
        self.lines.clear();
        build.compile_for("digits", &self.cargo, &mut |line| self.lines.push(line))
    }

    fn did_work(&mut self, build: &Build) -> bool {
        self.compile(build).unwrap_or_else(|e| panic!("{e}"))
    }
}

fn mnist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mnist/mnist-8.onnx")
}

#[test]
fn no_work_is_repeated() {
    let mut script = Script::new("x86_64-unknown-linux-gnu");
    let model = script.model();
    let build = Build::new(&model);
    assert!(script.did_work(&build));
    assert!(!script.did_work(&build));
    let new = SystemTime::now() + std::time::Duration::from_secs(60);
    let file = fs::File::options().write(true).open(&model).expect("open");
    file.set_modified(new).expect("a new time stamp");
    assert!(!script.did_work(&build), "a new time stamp is no change");
    let before = fs::read(script.out("digits.image")).expect("the image");
    fs::write(script.weights(), [1; 8]).expect("it is written");
    assert!(script.did_work(&build), "a weight has changed");
    assert_ne!(
        before,
        fs::read(script.out("digits.image")).expect("the image")
    );
    assert!(script.did_work(&build.clone().optimize(false)));
    assert!(script.did_work(&build.clone().bf16(true)));
    assert!(script.did_work(&build.clone().packed(true)));
    assert!(script.did_work(&build));
    script.cargo.features = ["avx2", "fma", "bmi1", "bmi2", "lzcnt"]
        .map(str::to_owned)
        .to_vec();
    assert!(script.did_work(&build), "other features");
    fs::remove_file(script.out("digits.image")).expect("it was there");
    assert!(script.did_work(&build), "the image is lost");
}

#[test]
fn cargo_is_told_of_the_model_and_the_files_of_its_weights() {
    let mut script = Script::new("x86_64-unknown-linux-gnu");
    let model = script.model();
    for _ in 0..2 {
        script.compile(&Build::new(&model)).expect("it compiles");
        let files = [&model, &script.weights()].map(|p| depends_on(p));
        assert_eq!(script.lines, files);
    }
    // What is missing is said, and looked for again when it is there.
    fs::remove_file(script.weights()).expect("it was there");
    let error = script.compile(&Build::new(&model)).expect_err("no weights");
    assert!(error.to_string().contains("weights.bin"), "{error}");
    assert_eq!(script.lines.len(), 2);
    assert!(!script.out("digits.key").exists());
}

#[test]
fn data_is_looked_at_and_depended_on() {
    let mut script = Script::new("x86_64-unknown-linux-gnu");
    let data = script.out("data");
    for k in 0..3 {
        let sample = data.join(k.to_string());
        fs::create_dir_all(&sample).expect("a folder");
        let pixels = lapidary_ir::random::SplitMix64::new(k).normals(28 * 28);
        let pixels: Vec<f32> = pixels.iter().map(|v| 60.0 * *v as f32).collect();
        let image =
            lapidary_runtime::Tensor::from_f32(vec![1, 1, 28, 28], &pixels).expect("as many");
        let port = crate::values::input_ports(
            &driver::import(&mnist(), &CompileOptions::host(1)).expect("reads"),
        );
        write_outputs(&sample, &port[..1], &[image.into()], Kind::Npy).expect("written");
    }
    let build = Build::new(mnist()).size("0.5x").calibrate(&data);
    script.compile(&build).expect("it compiles");
    assert_eq!(
        script.lines,
        [mnist(), data.clone()].map(|p| depends_on(&p))
    );
    assert!(!script.did_work(&build), "nothing has changed");
    let (one, other) = (data.join("0"), data.join("1"));
    let file = |of: &Path| {
        fs::read_dir(of)
            .expect("a folder")
            .next()
            .expect("a file")
            .expect("an entry")
            .path()
    };
    fs::copy(file(&one), file(&other)).expect("copied");
    assert!(script.did_work(&build), "the data has changed");
    // The same of codes, and of the recipe that says as much.
    let coded = Build::new(mnist()).quantize("int8").calibrate(&data);
    assert!(script.did_work(&coded), "other products");
    let recipe = script.out("recipe.toml");
    fs::write(&recipe, "[activations]\nsmooth = 0.5\n").expect("written");
    let followed = Build::new(mnist()).recipe(&recipe).calibrate(&data);
    assert!(!script.did_work(&followed), "it says the same");
    fs::write(&recipe, "[activations]\n").expect("written");
    assert!(script.did_work(&followed), "the recipe has changed");
    assert!(script.lines.contains(&depends_on(&recipe)));
    let unknown = Build::new(mnist()).quantize("int9").calibrate(&data);
    let said = script
        .compile(&unknown)
        .expect_err("there is none")
        .to_string();
    assert!(said.contains("int9"), "{said}");
}

#[test]
fn code_is_for_cargos_target() {
    for (target, machine) in [
        ("x86_64-pc-windows-msvc", 62),
        ("aarch64-unknown-linux-gnu", 183),
        ("riscv64gc-unknown-linux-gnu", 243),
    ] {
        let mut script = Script::new(target);
        assert!(script.did_work(&Build::new(mnist())));
        let image = fs::read(script.out("digits.image")).expect("the image");
        let last = image.last_chunk().expect("a trailer");
        let trailer = Trailer::decode(last, image.len() as u64).expect("a whole image");
        assert_eq!(trailer.machine, machine, "{target}");
    }
}

#[test]
fn messages_are_for_people() {
    let mut script = Script::new("wasm32-unknown-unknown");
    let error = script
        .compile(&Build::new(mnist()))
        .expect_err("no such target");
    let text = format!("{error:?}");
    assert!(
        text.contains("there is no target `wasm32-unknown-unknown`\nhelp: "),
        "{text}"
    );
    let mut script = Script::new("x86_64-unknown-linux-gnu");
    let error = script
        .compile(&Build::new("absent.onnx"))
        .expect_err("no file");
    assert!(format!("{error:?}").contains("`absent.onnx`"), "{error:?}");
    let error = Build::new(mnist())
        .compile_for("self", &script.cargo, &mut |_| ())
        .expect_err("a keyword");
    assert!(format!("{error:?}").contains("`self`"), "{error:?}");
    let left = fs::read_dir(&script.cargo.out_dir).expect("the folder");
    assert_eq!(left.count(), 0);
}
