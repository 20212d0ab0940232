//! Text to machine code: LLVM's code generator, without its middle passes, and a small linker.
//!
//! The middle passes have nothing to find in code that is unrolled and blocked already, and cost most of the time. The
//! object is made in memory; its code and its read-only data become one run of bytes, and the references between
//! them are resolved here. A reference to anything else is an error: nothing outside the blob exists where it runs.

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target as Machine, TargetMachine,
    TargetTriple,
};
use lapidary_ir::backend::{Error, Function};
use lapidary_ir::target::{Feature, Target};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex,
    SectionKind, SymbolSection, elf,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Once;

/// What LLVM calls a feature; nothing for those of GPUs, whose kernels another backend prints.
fn llvm_names(feature: Feature) -> Option<&'static str> {
    Some(match feature {
        Feature::Avx2 => "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe",
        // Without `evex512` every 512-bit vector would be split.
        Feature::Avx512 => "+evex512,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl",
        Feature::Avx512Vnni => "+avx512vnni",
        Feature::Avx512Bf16 => "+avx512bf16",
        Feature::AvxVnni => "+avxvnni",
        Feature::DotProd => "+dotprod",
        Feature::I8mm => "+i8mm",
        Feature::Bf16 => "+bf16",
        Feature::Sm80 | Feature::Sm86 | Feature::Sm89 | Feature::Sm90a | Feature::Sm100 => {
            return None;
        }
    })
}

/// LLVM's processor and features of a target.
fn processor(target: &Target) -> (&'static str, String) {
    let (name, always) = match target.arch() {
        "x86_64" => ("x86-64-v2", vec![]),
        "aarch64" => ("generic", vec!["+neon"]),
        // Without relaxation every distance inside a function is settled when the object is made.
        _ => ("generic-rv64", vec!["+m,+a,+f,+d,+c,+v,+zvl128b,-relax"]),
    };
    let more = target.features.iter().filter_map(|&f| llvm_names(f));
    (
        name,
        always.into_iter().chain(more).collect::<Vec<_>>().join(","),
    )
}

fn machine(target: &Target) -> Result<TargetMachine, Error> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let config = InitializationConfig::default();
        Machine::initialize_x86(&config);
        Machine::initialize_aarch64(&config);
        Machine::initialize_riscv(&config);
    });
    let bad = |message: String| Error::Target {
        triple: target.triple.clone(),
        message,
    };
    if target.arch().is_empty() {
        return Err(bad(
            "LLVM is used for x86_64, aarch64 and riscv64".to_owned()
        ));
    }
    // LLVM's name of an architecture has no extensions in it, and objects are ELF whatever they go into.
    let triple = TargetTriple::create(&format!("{}-unknown-linux-gnu", target.arch()));
    let machine = Machine::from_triple(&triple).map_err(|e| bad(e.to_string()))?;
    let (name, features) = processor(target);
    machine
        .create_target_machine(
            &triple,
            name,
            &features,
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Small,
        )
        .ok_or_else(|| bad("LLVM has no such machine".to_owned()))
}

/// Machine code of a function's text.
pub(crate) fn compile(name: &str, text: &str, target: &Target) -> Result<Function, Error> {
    let object = generate(name, text, target, FileType::Object)?;
    link(&object).map_err(|message| failed(name, message))
}

/// Machine code of a function's text, as text.
pub(crate) fn listing(name: &str, text: &str, target: &Target) -> Result<String, Error> {
    let assembly = generate(name, text, target, FileType::Assembly)?;
    Ok(String::from_utf8_lossy(&assembly)
        .trim_end_matches('\0')
        .to_owned())
}

fn failed(name: &str, message: String) -> Error {
    Error::Codegen {
        kernel: name.to_owned(),
        message,
    }
}

fn generate(name: &str, text: &str, target: &Target, kind: FileType) -> Result<Vec<u8>, Error> {
    let failed = |message: String| failed(name, message);
    let machine = machine(target)?;
    let context = Context::create();
    let buffer = MemoryBuffer::create_from_memory_range_copy(text.as_bytes(), "kernel");
    let module = context
        .create_module_from_ir(buffer)
        .map_err(|e| failed(e.to_string()))?;
    module.verify().map_err(|e| failed(e.to_string()))?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    machine
        .write_to_memory_buffer(&module, kind)
        .map(|buffer| buffer.as_slice().to_vec())
        .map_err(|e| failed(e.to_string()))
}

/// Code and read-only data of an object as one run of bytes.
fn link(bytes: &[u8]) -> Result<Function, String> {
    let file = object::File::parse(bytes).map_err(|e| e.to_string())?;
    let mut blob = vec![];
    let mut places: HashMap<SectionIndex, u64> = HashMap::new();
    let wanted = |kind| {
        matches!(
            kind,
            SectionKind::Text | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString
        )
    };
    for section in file.sections().filter(|s| wanted(s.kind()) && s.size() > 0) {
        let align = (section.align() as usize).max(1);
        if align > lapidary_ir::backend::ALIGN {
            return Err(format!(
                "a section of the object wants {align}-byte alignment"
            ));
        }
        blob.resize(blob.len().next_multiple_of(align), 0);
        places.insert(section.index(), blob.len() as u64);
        blob.extend(section.data().map_err(|e| e.to_string())?);
    }
    let entry = file
        .symbols()
        .filter(|s| s.name() == Ok("kernel"))
        .find_map(|s| Some(places.get(&s.section_index()?)? + s.address()))
        .ok_or("the object has no kernel")?;
    let mut fixups = vec![];
    for section in file.sections() {
        let Some(&at) = places.get(&section.index()) else {
            continue;
        };
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else {
                return Err("a relocation without symbol".to_owned());
            };
            let symbol = file.symbol_by_index(symbol).map_err(|e| e.to_string())?;
            let place = match symbol.section() {
                SymbolSection::Section(index) => places.get(&index),
                _ => None,
            };
            let name = symbol.name().unwrap_or("");
            let target = place.ok_or_else(|| format!("the code needs `{name}` from outside"))?
                + symbol.address();
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                return Err("a relocation that is none of ELF".to_owned());
            };
            fixups.push(Fixup {
                at: at + offset,
                target,
                addend: relocation.addend(),
                kind: r_type,
            });
        }
    }
    match file.architecture() {
        object::Architecture::X86_64 => x86_64(&mut blob, &fixups)?,
        object::Architecture::Aarch64 => aarch64(&mut blob, &fixups)?,
        _ => riscv64(&mut blob, &fixups)?,
    }
    Ok(Function { bytes: blob, entry })
}

/// A reference to resolve: the place at `at` refers to `target + addend`; all are offsets in the blob.
struct Fixup {
    at: u64,
    target: u64,
    addend: i64,
    kind: u32,
}

impl Fixup {
    fn goal(&self) -> i64 {
        self.target as i64 + self.addend
    }

    fn distance(&self) -> i64 {
        self.goal() - self.at as i64
    }

    fn unknown(&self) -> String {
        format!("the code needs a relocation of kind {}", self.kind)
    }
}

fn word(blob: &mut [u8], at: u64) -> Result<&mut [u8; 4], String> {
    blob.get_mut(at as usize..)
        .and_then(|b| b.first_chunk_mut())
        .ok_or_else(|| "a relocation outside of its section".to_owned())
}

/// Changes an instruction of 32 bits.
fn patch(blob: &mut [u8], at: u64, f: impl FnOnce(u32) -> u32) -> Result<(), String> {
    let bytes = word(blob, at)?;
    *bytes = f(u32::from_le_bytes(*bytes)).to_le_bytes();
    Ok(())
}

fn x86_64(blob: &mut [u8], fixups: &[Fixup]) -> Result<(), String> {
    for f in fixups {
        match f.kind {
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => {
                *word(blob, f.at)? = near(f.distance())?.to_le_bytes();
            }
            _ => return Err(f.unknown()),
        }
    }
    Ok(())
}

fn near(distance: i64) -> Result<i32, String> {
    i32::try_from(distance).map_err(|_| "the code is too long".to_owned())
}

/// A page address and an offset in the page depend on where the blob lies, so the first becomes the address itself
/// (`adrp` becomes `adr`, which reaches a megabyte) and the second nothing.
fn aarch64(blob: &mut [u8], fixups: &[Fixup]) -> Result<(), String> {
    for f in fixups {
        match f.kind {
            elf::R_AARCH64_ADR_PREL_PG_HI21 | elf::R_AARCH64_ADR_PREL_LO21 => {
                let d = near(f.distance())?;
                if !(-(1 << 20)..1 << 20).contains(&d) {
                    return Err("the constants are too far from the code".to_owned());
                }
                let (low, high) = (d as u32 & 3, (d >> 2) as u32 & 0x7_FFFF);
                patch(blob, f.at, |i| {
                    (i & 0x1F) | 0x1000_0000 | low << 29 | high << 5
                })?;
            }
            elf::R_AARCH64_ADD_ABS_LO12_NC
            | elf::R_AARCH64_LDST8_ABS_LO12_NC
            | elf::R_AARCH64_LDST16_ABS_LO12_NC
            | elf::R_AARCH64_LDST32_ABS_LO12_NC
            | elf::R_AARCH64_LDST64_ABS_LO12_NC
            | elf::R_AARCH64_LDST128_ABS_LO12_NC => {
                // Only right if the register holds this very address.
                let whole =
                    |p: &&Fixup| p.kind == elf::R_AARCH64_ADR_PREL_PG_HI21 && p.goal() == f.goal();
                fixups.iter().find(whole).ok_or_else(|| f.unknown())?;
                patch(blob, f.at, |i| i & !(0xFFF << 10))?;
            }
            _ => return Err(f.unknown()),
        }
    }
    Ok(())
}

/// The low half of an address names the instruction with its high half, from where it is counted.
fn riscv64(blob: &mut [u8], fixups: &[Fixup]) -> Result<(), String> {
    let high: BTreeMap<u64, i64> = fixups
        .iter()
        .filter(|f| f.kind == elf::R_RISCV_PCREL_HI20)
        .map(|f| (f.at, f.distance()))
        .collect();
    for f in fixups {
        match f.kind {
            elf::R_RISCV_PCREL_HI20 => {
                let upper = near(f.distance() + 0x800)? as u32 & 0xFFFF_F000;
                patch(blob, f.at, |i| (i & 0xFFF) | upper)?;
            }
            elf::R_RISCV_PCREL_LO12_I => {
                let distance = high.get(&f.target).ok_or_else(|| f.unknown())?;
                let low = near(*distance)? as u32 & 0xFFF;
                patch(blob, f.at, |i| (i & 0xF_FFFF) | low << 20)?;
            }
            elf::R_RISCV_RELAX | elf::R_RISCV_ALIGN => {}
            _ => return Err(f.unknown()),
        }
    }
    Ok(())
}
