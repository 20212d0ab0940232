//! The Rust module of a compiled model: structs with a field for each input and output, named and typed as in
//! the model.
//!
//! A scalar is its element, a known shape an array of the elements in row-major order, a shape that depends on
//! the inputs an `Array` of its rank; what has no such form in Rust (sequences, strings, packed types) is a
//! `lapidary_runtime::Value`.

use crate::artefact::header::known;
use crate::artefact::identifiers;
use lapidary_abi::ElemType;
use lapidary_abi::program::{Port, Program, ValueType};
use lapidary_runtime::exec::type_text;
use std::fmt::Write;

/// Words that no field or module can be named.
const KEYWORDS: &[&str] = &[
    "_", "abstract", "as", "async", "await", "become", "box", "break", "const", "continue",
    "crate", "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if",
    "impl", "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub",
    "ref", "return", "self", "static", "struct", "super", "trait", "true", "try", "type", "typeof",
    "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// Whether a module can have this name, and files of this name lie in a folder.
pub fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = !name.starts_with(|c: char| c.is_ascii_digit());
    !name.is_empty() && begins && name.chars().all(fits) && !KEYWORDS.contains(&name)
}

/// The text of the module `name`, made from the model in `file`.
pub fn source(file: &str, name: &str, program: &Program) -> String {
    let (inputs, outputs) = (fields(&program.inputs), fields(&program.outputs));
    let lifetime = if inputs.is_empty() { "" } else { "<'a>" };
    let any_lifetime = if inputs.is_empty() { "" } else { "<'_>" };
    let mut text = format!(
        "// Made by lapidary {} from {}.

use ::lapidary_runtime::{{ModelOptions, RunError, Value, typed}};

static IMAGE: &typed::Aligned<[u8]> = &typed::Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.image\")));

/// The inputs of the model.
#[derive(Clone, Debug)]
pub struct Inputs{lifetime} {{
",
        env!("CARGO_PKG_VERSION"),
        shown(file),
    );
    declare(&mut text, &inputs, program, Field::input_type);
    text += &format!("}}\n\nimpl Inputs{any_lifetime} {{\n");
    constants(&mut text, &inputs);
    text += "}\n\n/// The outputs of the model.\n#[derive(Clone, Debug)]\npub struct Outputs {\n";
    declare(&mut text, &outputs, program, Field::output_type);
    text += "}\n\nimpl Outputs {\n";
    constants(&mut text, &outputs);
    text += "}

/// The model, ready to run. Threads may run it at the same time.
pub struct Model(::lapidary_runtime::Model);

impl Model {
    /// Loads the model, with a thread for each core.
    pub fn new() -> Result<Model, RunError> {
        Model::with_options(ModelOptions::default())
    }

    /// Loads the model.
    pub fn with_options(options: ModelOptions) -> Result<Model, RunError> {
        typed::load(IMAGE, options).map(Model)
    }

    /// The model without types: ports by name, timing, buffers.
    pub fn untyped(&self) -> &::lapidary_runtime::Model {
        &self.0
    }

    /// Runs the model.
    pub fn run(&self, inputs: &Inputs) -> Result<Outputs, RunError> {
        let _ = inputs;
        let operands = [
";
    for field in &inputs {
        let _ = writeln!(text, "            {},", field.operand());
    }
    let n = outputs.len();
    text += &format!(
        "        ];\n        let values: [Value; {n}] = typed::run(&self.0, &operands)?;\n        Ok(Outputs {{\n"
    );
    for (i, field) in outputs.iter().enumerate() {
        let _ = writeln!(text, "            {}: {},", field.name, field.result(i));
    }
    text + "        })\n    }\n}\n"
}

/// A field of the structs.
struct Field<'p> {
    name: String,
    port: &'p Port,
    form: Form,
}

/// What a value is in Rust.
enum Form {
    Scalar(&'static str),
    /// All dimensions are known.
    Fixed(&'static str, Vec<i64>),
    /// The rank is known.
    Ranked(&'static str, usize),
    Value,
}

fn fields(ports: &[Port]) -> Vec<Field<'_>> {
    let names: Vec<String> = ports.iter().map(|p| snake_case(&p.name)).collect();
    identifiers(names.iter().map(String::as_str), KEYWORDS)
        .into_iter()
        .zip(ports)
        .map(|(name, port)| Field {
            name,
            form: form(port),
            port,
        })
        .collect()
}

fn form(port: &Port) -> Form {
    let ValueType::Tensor { elem, dims } = &port.ty else {
        return Form::Value;
    };
    match (rust_type(*elem), dims, known(port)) {
        (Some(ty), _, Some((_, dims))) if dims.is_empty() => Form::Scalar(ty),
        (Some(ty), _, Some((_, dims))) => Form::Fixed(ty, dims),
        (Some(ty), Some(dims), None) => Form::Ranked(ty, dims.len()),
        _ => Form::Value,
    }
}

impl Field<'_> {
    fn input_type(&self) -> String {
        match &self.form {
            Form::Scalar(ty) => (*ty).to_owned(),
            Form::Fixed(ty, dims) => format!("&'a [{ty}; {}]", dims.iter().product::<i64>()),
            Form::Ranked(ty, rank) => format!("typed::Array<'a, {ty}, {rank}>"),
            Form::Value => "&'a Value".to_owned(),
        }
    }

    fn output_type(&self) -> String {
        match &self.form {
            Form::Scalar(ty) => (*ty).to_owned(),
            Form::Fixed(ty, dims) => format!("Box<[{ty}; {}]>", dims.iter().product::<i64>()),
            Form::Ranked(ty, rank) => format!("typed::OwnedArray<{ty}, {rank}>"),
            Form::Value => "Value".to_owned(),
        }
    }

    fn operand(&self) -> String {
        let name = &self.name;
        match &self.form {
            Form::Scalar(_) => format!("typed::input(std::slice::from_ref(&inputs.{name}), &[])?"),
            Form::Fixed(_, dims) => format!("typed::input(inputs.{name}.as_slice(), &{dims:?})?"),
            Form::Ranked(..) => format!("typed::input(inputs.{name}.data, &inputs.{name}.dims)?"),
            Form::Value => format!("inputs.{name}.operand()"),
        }
    }

    fn result(&self, index: usize) -> String {
        let name = &self.port.name;
        match self.form {
            Form::Scalar(_) => {
                format!("typed::output_array::<_, 1>(&values[{index}], {name:?})?[0]")
            }
            Form::Fixed(..) => format!("typed::output_array(&values[{index}], {name:?})?"),
            Form::Ranked(..) => format!("typed::output_owned(&values[{index}], {name:?})?"),
            Form::Value => format!("values[{index}].clone()"),
        }
    }
}

fn declare<'p>(
    text: &mut String,
    fields: &[Field<'p>],
    program: &Program,
    ty: fn(&Field<'p>) -> String,
) {
    for field in fields {
        let stated = type_text(&field.port.ty, &program.symbols);
        let (stated, said) = (shown(&stated), shown(&field.port.name));
        let _ = writeln!(
            text,
            "    /// `{said}`: {stated}.\n    pub {}: {},",
            field.name,
            ty(field)
        );
    }
}

fn constants(text: &mut String, fields: &[Field]) {
    for field in fields {
        if let Form::Fixed(_, dims) = &field.form {
            let (name, rank) = (field.name.to_uppercase(), dims.len());
            let line = format!("pub const {name}_DIMS: [usize; {rank}] = {dims:?};");
            let _ = writeln!(text, "    /// Dimensions of `{}`.\n    {line}", field.name);
        }
    }
}

/// A model's word in a comment.
fn shown(word: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && c != '`' || c == ' ';
    word.chars()
        .map(|c| {
            if plain(c) {
                c.to_string()
            } else {
                c.escape_unicode().to_string()
            }
        })
        .collect()
}

/// `inputNode` as `input_node`, `Plus214_Output_0` as `plus214_output_0`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    let mut before_is_small = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && before_is_small {
            snake.push('_');
        }
        before_is_small = c.is_ascii_lowercase();
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// The type of elements that lie in memory as Rust has them.
fn rust_type(elem: ElemType) -> Option<&'static str> {
    Some(match elem {
        ElemType::F32 => "f32",
        ElemType::F64 => "f64",
        ElemType::F16 => "typed::f16",
        ElemType::BF16 => "typed::bf16",
        ElemType::I8 => "i8",
        ElemType::I16 => "i16",
        ElemType::I32 => "i32",
        ElemType::I64 => "i64",
        ElemType::U8 => "u8",
        ElemType::U16 => "u16",
        ElemType::U32 => "u32",
        ElemType::U64 => "u64",
        ElemType::Bool => "bool",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_abi::Size;

    fn tensor(name: &str, elem: ElemType, dims: Option<Vec<Size>>) -> Port {
        Port {
            name: name.into(),
            ty: ValueType::Tensor { elem, dims },
            value: 0,
        }
    }

    #[test]
    fn names_become_fields_and_types_what_rust_has_for_them() {
        let fixed = |dims: &[i64]| Some(dims.iter().map(|&d| d.into()).collect());
        let program = Program {
            symbols: vec!["batch".into()],
            inputs: vec![
                tensor("inputNode", ElemType::F32, fixed(&[1, 28, 28])),
                tensor("type", ElemType::I64, fixed(&[])),
                tensor("a\n*/b", ElemType::Bool, Some(vec![Size::Sym(0), 3.into()])),
                tensor("words", ElemType::String, fixed(&[2])),
            ],
            outputs: vec![tensor("a", ElemType::F16, None)],
            ..Program::default()
        };
        let text = source("m.onnx", "m", &program);
        for want in [
            "pub input_node: &'a [f32; 784],",
            "pub const INPUT_NODE_DIMS: [usize; 3] = [1, 28, 28];",
            "typed::input(inputs.input_node.as_slice(), &[1, 28, 28])?",
            "pub type_2: i64,",
            "pub a___b: typed::Array<'a, bool, 2>,",
            "/// `a\\u{a}*/b`: bool[batch, 3].",
            "pub words: &'a Value,",
            "pub a: Value,",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
    }

    #[test]
    fn names_of_modules_are_checked() {
        let names = ["digits", "a_1", "", "1a", "A", "a-b", "../x", "self", "_"];
        let right: Vec<&str> = names.into_iter().filter(|n| is_name(n)).collect();
        assert_eq!(right, ["digits", "a_1"]);
    }
}
