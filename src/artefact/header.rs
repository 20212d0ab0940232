//! C headers of libraries and objects: constants of the ports, prototypes, typed calls.

use super::{identifier, identifiers};
use lapidary_abi::ElemType;
use lapidary_abi::program::{Port, Program, ValueType};
use lapidary_cranelift::object::object_arena_bytes;
use lapidary_runtime::capi;
use lapidary_runtime::exec::type_text;
use std::fmt::Write;
use std::path::Path;

/// The C name of what is written to a path: its file name without `lib` and extension.
pub fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    identifier(
        stem.strip_prefix("lib")
            .filter(|s| !s.is_empty())
            .unwrap_or(&stem),
    )
}

/// Header of a static or shared library.
pub fn library_header(name: &str, program: &Program) -> String {
    let mut text = format!("{}\n", capi::HEADER);
    frame(&mut text, name, |text| {
        constants(text, name, program);
        let _ = write!(
            text,
            "/* Loads the model; `threads` 0 stands for one for each core. */
lapidary_status {name}_create(uint32_t threads, lapidary_model **model);
/* As lapidary_run, lapidary_destroy and lapidary_last_error. */
lapidary_status {name}_run(lapidary_model *model, const lapidary_tensor *inputs, size_t n_inputs,
                           lapidary_tensor *outputs, size_t n_outputs);
void {name}_destroy(lapidary_model *model);
const char *{name}_last_error(void);
"
        );
        typed_call(text, name, program);
    });
    text
}

/// Header of a freestanding object.
pub fn object_header(name: &str, program: &Program) -> String {
    let mut text = "#include <stddef.h>\n#include <stdint.h>\n\n".to_owned();
    frame(&mut text, name, |text| {
        constants(text, name, program);
        let bytes = object_arena_bytes(program);
        let _ = write!(
            text,
            "/* Size of the working memory that {name}_run needs, aligned to 64 bytes. */
#define {name}_ARENA_BYTES {bytes}

/* Runs the model: inputs and outputs in the order above, row-major. Needs no library; threads may run it at
 * the same time, each with its own arena. */
void {name}_run(const void *const *inputs, void *const *outputs, void *arena);
"
        );
    });
    text
}

fn frame(text: &mut String, name: &str, body: impl FnOnce(&mut String)) {
    let guard = format!("LAPIDARY_MODEL_{name}_H");
    let _ = write!(
        text,
        "#ifndef {guard}\n#define {guard}\n\n#ifdef __cplusplus\nextern \"C\" {{\n#endif\n\n"
    );
    body(text);
    text.push_str("\n#ifdef __cplusplus\n}\n#endif\n\n#endif\n");
}

/// Number, name, rank, dimensions and elements of each port, as far as they are known.
fn constants(text: &mut String, name: &str, program: &Program) {
    for (kind, ports) in [("INPUT", &program.inputs), ("OUTPUT", &program.outputs)] {
        let _ = writeln!(text, "#define {name}_{kind}_COUNT {}", ports.len());
        for (i, (port, id)) in ports.iter().zip(ids(ports)).enumerate() {
            let ty = type_text(&port.ty, &program.symbols).replace("*/", "* /");
            let _ = writeln!(text, "/* {} {i}: {ty} */", kind.to_lowercase());
            let _ = writeln!(text, "#define {name}_{kind}_{id} {i}");
            let quoted = port.name.replace('\\', "\\\\").replace('"', "\\\"");
            let quoted = quoted.replace(|c: char| c.is_control(), " ");
            let _ = writeln!(text, "#define {name}_{kind}_{id}_NAME \"{quoted}\"");
            if let Some((_, dims)) = known(port) {
                let n: i64 = dims.iter().product();
                let _ = writeln!(text, "#define {name}_{kind}_{id}_ELEMENTS {n}");
            }
        }
        text.push('\n');
    }
}

fn ids(ports: &[Port]) -> Vec<String> {
    identifiers(ports.iter().map(|p| p.name.as_str()), &RESERVED)
}

/// Words that fields of C and C++ structs cannot have, of those that inputs are likely to.
const RESERVED: [&str; 12] = [
    "auto", "case", "char", "class", "default", "double", "float", "int", "long", "new", "signed",
    "this",
];

/// Structs with a pointer for each port, and a call that takes them, where all shapes are known.
fn typed_call(text: &mut String, name: &str, program: &Program) {
    let lists = [("inputs", &program.inputs), ("outputs", &program.outputs)];
    let typed =
        |p: &Port| known(p).is_some_and(|(e, d)| c_type(e).is_some() && d.len() <= capi::MAX_RANK);
    let all = lists
        .iter()
        .all(|(_, ports)| !ports.is_empty() && ports.iter().all(typed));
    if !all {
        text.push_str("\n/* Some shapes depend on the inputs: there is no typed call. */\n");
        return;
    }
    for (kind, ports) in lists {
        let _ = writeln!(
            text,
            "\n/* The {kind} in the caller's memory. */\ntypedef struct {name}_{kind} {{"
        );
        for (port, id) in ports.iter().zip(ids(ports)) {
            let Some((elem, dims)) = known(port) else {
                continue;
            };
            let constant = if kind == "inputs" { "const " } else { "" };
            let c = c_type(elem).unwrap_or_default();
            let _ = writeln!(text, "    {constant}{c} *{id}; /* {elem}{dims:?} */");
        }
        let _ = writeln!(text, "}} {name}_{kind};");
    }
    let _ = write!(
        text,
        "
/* Runs the model on typed inputs and outputs. */
static inline lapidary_status {name}_call(lapidary_model *model, const {name}_inputs *inputs,
                                          const {name}_outputs *outputs) {{
"
    );
    for (kind, ports) in lists {
        let list = if kind == "inputs" { "in" } else { "out" };
        let _ = writeln!(text, "    lapidary_tensor {list}[{}] = {{", ports.len());
        for (port, id) in ports.iter().zip(ids(ports)) {
            let Some((elem, dims)) = known(port) else {
                continue;
            };
            let n: i64 = dims.iter().product::<i64>() * elem.size_bytes() as i64;
            let (rank, onnx) = (dims.len(), elem.onnx());
            let mut list: Vec<String> = dims.iter().map(i64::to_string).collect();
            list.resize(rank.max(1), "0".to_owned());
            let list = list.join(", ");
            let _ = writeln!(
                text,
                "        {{NULL, {onnx}, {rank}, {{{list}}}, (void *){kind}->{id}, {n}}},"
            );
        }
        text.push_str("    };\n");
    }
    let (n, m) = (program.inputs.len(), program.outputs.len());
    let _ = writeln!(text, "    return {name}_run(model, in, {n}, out, {m});\n}}");
}

/// Element type and dimensions of a port whose shape is known.
pub(crate) fn known(port: &Port) -> Option<(ElemType, Vec<i64>)> {
    match &port.ty {
        ValueType::Tensor {
            elem,
            dims: Some(dims),
        } if *elem != ElemType::String => {
            let dims = dims.iter().map(|d| d.as_const()).collect::<Option<_>>()?;
            Some((*elem, dims))
        }
        _ => None,
    }
}

fn c_type(elem: ElemType) -> Option<&'static str> {
    Some(match elem {
        ElemType::F32 => "float",
        ElemType::F64 => "double",
        ElemType::I8 => "int8_t",
        ElemType::I16 => "int16_t",
        ElemType::I32 => "int32_t",
        ElemType::I64 => "int64_t",
        ElemType::U8 | ElemType::Bool => "uint8_t",
        ElemType::U16 | ElemType::F16 | ElemType::BF16 => "uint16_t",
        ElemType::U32 => "uint32_t",
        ElemType::U64 => "uint64_t",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_comes_from_the_file() {
        for (path, name) in [
            ("x/libdigits.a", "digits"),
            ("lib.so", "lib"),
            ("a-b.o", "a_b"),
        ] {
            assert_eq!(name_of(Path::new(path)), name);
        }
    }
}
