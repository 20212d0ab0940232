//! The instruction set: six classes of 1 to 7 words of 32 bits, as one table.
//!
//! Classes, their opcodes (bits 31 to 28 of the first word), their lengths and the masks `wait` and `release` over the other
//! five classes are FlightLLM's, as its repository has them; where a field lies within the words is ours. An instruction
//! waits for one token of every class in `wait`, and when it is done gives one to every class in `release`. Each class
//! is a queue that runs in order.

use std::fmt::Write;

/// A run of bits of an instruction.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// As the disassembler prints it.
    pub name: &'static str,
    /// Word that it lies in.
    pub word: usize,
    /// Its lowest bit.
    pub low: u32,
    /// Its width in bits.
    pub bits: u32,
}

/// A class of instructions: a queue and a unit.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// As the disassembler prints it.
    pub name: &'static str,
    /// Bits 31 to 28 of the first word.
    pub opcode: u32,
    /// Length in words.
    pub words: usize,
    /// All that the words hold but the opcode. `zero` is a field that must be 0.
    pub fields: &'static [Field],
}

const fn f(name: &'static str, word: usize, low: u32, bits: u32) -> Field {
    Field {
        name,
        word,
        low,
        bits,
    }
}

/// Loads.
pub const LD: usize = 0;
/// Stores.
pub const ST: usize = 1;
/// Products of 16 vectors with 16 outputs of a matrix.
pub const MM: usize = 2;
/// Products of one vector with 16 outputs of a matrix.
pub const MV: usize = 3;
/// The special function unit.
pub const MISC: usize = 4;
/// The end of a stream.
pub const SYS: usize = 5;

const PRODUCT: &[Field] = &[
    f("wait", 0, 23, 5),
    f("release", 0, 18, 5),
    f("k", 0, 6, 12),
    f("bits", 0, 2, 4),
    f("relu", 0, 1, 1),
    f("sparse", 0, 0, 1),
    f("a", 1, 16, 16),
    f("b", 1, 0, 16),
    f("meta", 2, 16, 16),
    f("fsb", 2, 0, 16),
    f("scale", 3, 16, 16),
    f("out", 3, 0, 16),
];

/// Every class, in the order of the bits of masks.
///
/// Addresses of buffers count lines (see `simulate::DEPTHS`), addresses and strides of memory and lengths 16 bytes; loop counts are
/// one less than the number of rounds.
/// `index` adds a register times the first stride to the address: 1 the position, 2 the token.
pub static CLASSES: [Class; 6] = [
    Class {
        name: "LD",
        opcode: 1,
        words: 7,
        fields: &[
            f("wait", 0, 23, 5),
            f("release", 0, 18, 5),
            f("buffer", 0, 15, 3),
            f("channel", 0, 9, 6),
            f("index", 0, 7, 2),
            f("fill", 0, 6, 1),
            f("ddr", 0, 5, 1),
            f("zero", 0, 0, 5),
            f("bank", 1, 12, 20),
            f("count0", 1, 0, 12),
            f("address", 2, 0, 32),
            f("length", 3, 20, 12),
            f("count1", 3, 10, 10),
            f("count2", 3, 0, 10),
            f("stride0", 4, 0, 32),
            f("stride1", 5, 0, 32),
            f("stride2", 6, 0, 32),
        ],
    },
    Class {
        name: "ST",
        opcode: 2,
        words: 3,
        fields: &[
            f("wait", 0, 23, 5),
            f("release", 0, 18, 5),
            f("buffer", 0, 15, 3),
            f("channel", 0, 9, 6),
            f("indexed", 0, 8, 1),
            f("stride", 0, 0, 8),
            f("address", 1, 0, 32),
            f("bank", 2, 12, 20),
            f("length", 2, 0, 12),
        ],
    },
    Class {
        name: "MM",
        opcode: 3,
        words: 4,
        fields: PRODUCT,
    },
    Class {
        name: "MV",
        opcode: 4,
        words: 4,
        fields: PRODUCT,
    },
    Class {
        name: "MISC",
        opcode: 5,
        words: 3,
        fields: &[
            f("wait", 0, 23, 5),
            f("release", 0, 18, 5),
            f("op", 0, 14, 4),
            f("k", 0, 2, 12),
            f("zero", 0, 0, 2),
            f("a", 1, 16, 16),
            f("b", 1, 0, 16),
            f("out", 2, 16, 16),
            f("zero", 2, 0, 16),
        ],
    },
    Class {
        name: "SYS",
        opcode: 15,
        words: 1,
        fields: &[
            f("wait", 0, 23, 5),
            f("release", 0, 18, 5),
            f("zero", 0, 0, 18),
        ],
    },
];

/// What the special function unit does, by the number in the field `op`.
pub static MISC_OPS: [&str; 8] = [
    "add", "silu_mul", "rms_norm", "rope", "quant", "score", "softmax", "mix",
];

/// The bit of class `other` in a mask of class `class`: the other five, in order. `None` for the class itself.
pub fn mask_bit(class: usize, other: usize) -> Option<u32> {
    match other.cmp(&class) {
        std::cmp::Ordering::Less => Some(other as u32),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(other as u32 - 1),
    }
}

/// An instruction: its class and the values of its class's fields, in the table's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Number of its class in [`CLASSES`].
    pub class: usize,
    /// A value for each field.
    pub values: Vec<u32>,
}

impl Instruction {
    /// An instruction whose named fields have these values, and all others 0.
    ///
    /// # Errors
    /// A field is unknown, or a value does not fit it.
    pub fn new(class: usize, fields: &[(&str, usize)]) -> Result<Instruction, String> {
        let mut made = Instruction {
            class,
            values: vec![0; CLASSES[class].fields.len()],
        };
        for (name, value) in fields {
            made.set(name, *value)?;
        }
        Ok(made)
    }

    /// Sets a field.
    ///
    /// # Errors
    /// The field is unknown, or the value does not fit it.
    pub fn set(&mut self, name: &str, value: usize) -> Result<(), String> {
        let class = &CLASSES[self.class];
        let at = class.fields.iter().position(|field| field.name == name);
        let at = at.ok_or_else(|| format!("{} has no field `{name}`", class.name))?;
        if value as u64 >> class.fields[at].bits != 0 {
            let (bits, class) = (class.fields[at].bits, class.name);
            return Err(format!(
                "{value} does not fit the {bits} bits of `{name}` of {class}"
            ));
        }
        self.values[at] = value as u32;
        Ok(())
    }

    /// The value of a field; 0 if the class has none of this name.
    pub fn get(&self, name: &str) -> usize {
        let fields = CLASSES[self.class].fields;
        let at = fields.iter().position(|field| field.name == name);
        at.map_or(0, |at| self.values[at] as usize)
    }

    /// Appends the words.
    pub fn encode(&self, words: &mut Vec<u32>) {
        let class = &CLASSES[self.class];
        let start = words.len();
        words.resize(start + class.words, 0);
        words[start] = class.opcode << 28;
        for (field, value) in class.fields.iter().zip(&self.values) {
            words[start + field.word] |= value << field.low;
        }
    }

    /// One line of text: the class, then fields that are not 0.
    pub fn text(&self) -> String {
        let class = &CLASSES[self.class];
        let mut text = class.name.to_owned();
        for (field, value) in class.fields.iter().zip(&self.values) {
            match field.name {
                "op" => _ = write!(text, " {}", MISC_OPS.get(*value as usize).unwrap_or(&"?")),
                "wait" | "release" if *value != 0 => {
                    let of = (0..6)
                        .filter(|o| mask_bit(self.class, *o).is_some_and(|b| value >> b & 1 == 1));
                    let names: Vec<&str> = of.map(|o| CLASSES[o].name).collect();
                    _ = write!(text, " {}={}", field.name, names.join("+"));
                }
                _ if *value != 0 => _ = write!(text, " {}={value}", field.name),
                _ => {}
            }
        }
        text
    }
}

/// Reads a stream of words.
///
/// # Errors
/// An opcode is unknown, the last instruction is cut off, a reserved bit is set, or an operation of the special function unit is unknown;
/// the message has the word's number.
pub fn decode(words: &[u32]) -> Result<Vec<Instruction>, String> {
    let mut at = 0;
    let mut stream = Vec::new();
    while at < words.len() {
        let opcode = words[at] >> 28;
        let class = CLASSES.iter().position(|class| class.opcode == opcode);
        let class = class.ok_or_else(|| format!("word {at}: no class has opcode {opcode}"))?;
        let spec = &CLASSES[class];
        let body = words.get(at..at + spec.words);
        let body =
            body.ok_or_else(|| format!("word {at}: the stream ends within a {}", spec.name))?;
        let of = |field: &Field| {
            ((u64::from(body[field.word]) >> field.low) & ((1 << field.bits) - 1)) as u32
        };
        let values: Vec<u32> = spec.fields.iter().map(of).collect();
        if spec
            .fields
            .iter()
            .zip(&values)
            .any(|(field, value)| field.name == "zero" && *value != 0)
        {
            return Err(format!(
                "word {at}: reserved bits of a {} are set",
                spec.name
            ));
        }
        let instruction = Instruction { class, values };
        if class == MISC && instruction.get("op") >= MISC_OPS.len() {
            return Err(format!(
                "word {at}: there is no operation {}",
                instruction.get("op")
            ));
        }
        stream.push(instruction);
        at += spec.words;
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_tile_all_bits() {
        for class in &CLASSES {
            let mut covered = vec![0u32; class.words];
            covered[0] = 0xf << 28;
            for field in class.fields {
                assert!(
                    field.low + field.bits <= 32,
                    "{} {}",
                    class.name,
                    field.name
                );
                let mask = (((1u64 << field.bits) - 1) as u32) << field.low;
                assert_eq!(
                    covered[field.word] & mask,
                    0,
                    "{} {} overlaps",
                    class.name,
                    field.name
                );
                covered[field.word] |= mask;
            }
            assert!(
                covered.iter().all(|word| *word == u32::MAX),
                "{}: {covered:x?}",
                class.name
            );
        }
    }

    #[test]
    fn instructions_survive_and_others_are_refused() {
        let mut state = 7u64;
        let mut random = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 32) as u32
        };
        for round in 0..3000 {
            let class = round % 6;
            let mut made = Instruction {
                class,
                values: vec![],
            };
            for field in CLASSES[class].fields {
                let value = u64::from(random()) & ((1 << field.bits) - 1);
                let value = match field.name {
                    "zero" => 0,
                    "op" => value % MISC_OPS.len() as u64,
                    _ => value,
                };
                made.values.push(value as u32);
            }
            let mut words = vec![];
            made.encode(&mut words);
            assert_eq!(words.len(), CLASSES[class].words);
            assert_eq!(decode(&words).unwrap(), [made]);
            if words.len() > 1 {
                assert!(
                    decode(&words[..words.len() - 1])
                        .unwrap_err()
                        .contains("ends within")
                );
            }
        }
        for opcode in [0u32, 6, 7, 8, 9, 10, 11, 12, 13, 14] {
            assert!(decode(&[opcode << 28]).unwrap_err().contains("opcode"));
        }
        assert!(decode(&[15 << 28 | 1]).unwrap_err().contains("reserved"));
        assert!(
            decode(&[5 << 28 | 15 << 14, 0, 0])
                .unwrap_err()
                .contains("operation")
        );
        assert!(Instruction::new(SYS, &[("k", 1)]).is_err());
        assert!(Instruction::new(MV, &[("k", 4096)]).is_err());
        let add = Instruction::new(MISC, &[("wait", 1), ("k", 4)]).unwrap();
        assert_eq!(add.text(), "MISC wait=LD add k=4");
    }
}
