//! The processing elements of a folded product as SystemVerilog: what the HLS compiler is expected to make of the loop nest,
//! small enough for open tools to simulate and to count.
//!
//! ```text
//! in_data  SIMD codes  ──►  held (first round) ──►  PE x SIMD products, two to a DSP  ──►  PE sums  ──►  out_data
//!                            weights: one word of PE x SIMD codes for each step ───┘
//! ```
//! `in_ready` is up in the first round, in which the `MW / SIMD` words of a vector are taken and held; each round makes `PE`
//! sums. A step in every cycle, so a vector takes `(MH / PE) * (MW / SIMD)` cycles.
//!
//! Additions are modules that synthesis keeps: left to itself it makes one sum of many numbers out of logic, half as large again
//! as carry chains and hardly to be predicted.

use std::fmt::Write;

/// Bits of a sum.
const SUM: u32 = 32;

/// Bits of a product of two 8-bit codes, with room for what its neighbour borrows.
const PRODUCT: u32 = 18;

/// Words of a memory that one look-up table of six inputs holds a bit of.
const LUT_WORDS: u32 = 64;

/// A matrix-vector unit: `u8` inputs, `i8` weights, `i32` sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Length of an input vector (MW), a multiple of `simd`.
    pub inputs: u32,
    /// Sums of a vector (MH), a multiple of `pe`.
    pub outputs: u32,
    /// Inputs in a cycle.
    pub simd: u32,
    /// Sums at once; even, as two share multipliers.
    pub pe: u32,
}

impl Unit {
    /// Cycles for a vector.
    pub fn cycles(&self) -> u32 {
        (self.outputs / self.pe) * (self.inputs / self.simd)
    }

    /// DSP slices.
    pub fn dsp(&self) -> u32 {
        self.pe * self.simd / 2
    }

    /// Flip-flops: sums and results, the state of two counters, and a bit that says that results are there.
    pub fn flip_flops(&self) -> u32 {
        let bits = |n: u32| 32 - n.saturating_sub(1).leading_zeros();
        let counters = bits(self.inputs / self.simd) + bits(self.outputs / self.pe);
        2 * self.pe * SUM + counters + 1
    }

    /// Look-up tables: of the weights' memory, of the higher one of two weights that share a multiplier, of additions, and of the
    /// choice between new and held inputs.
    pub fn luts(&self) -> u32 {
        let Unit { simd, pe, .. } = *self;
        let memory = 8 * pe * simd * self.cycles().div_ceil(LUT_WORDS);
        let pairs = 9 * pe * simd / 2;
        let tree: u32 = tree(simd).iter().map(|add| add.width).sum();
        memory + pairs + pe * (tree + SUM) + 8 * simd
    }

    /// The module, with its weights `[outputs][inputs]`.
    ///
    /// # Errors
    /// The unit is not one: its extents do not divide, or there is another number of weights.
    pub fn verilog(&self, name: &str, weights: &[i8]) -> Result<String, String> {
        let Unit {
            inputs,
            outputs,
            simd,
            pe,
        } = *self;
        let divides =
            simd > 0 && pe > 0 && inputs.is_multiple_of(simd) && outputs.is_multiple_of(pe);
        if !divides || inputs == 0 || outputs == 0 || !pe.is_multiple_of(2) {
            return Err(format!("{self:?} does not fold"));
        }
        if weights.len() != (inputs * outputs) as usize {
            return Err(format!("{} weights for {self:?}", weights.len()));
        }
        let (steps, rounds) = (inputs / simd, outputs / pe);
        let mut rom = String::new();
        for round in 0..rounds {
            for step in 0..steps {
                // The first code lies in the lowest bits.
                let mut word = String::new();
                for p in (0..pe).rev() {
                    for s in (0..simd).rev() {
                        let at = (round * pe + p) * inputs + step * simd + s;
                        let _ = write!(word, "{:02x}", weights[at as usize]);
                    }
                }
                let _ = writeln!(
                    rom,
                    "    weights[{}] = {}'h{word};",
                    round * steps + step,
                    8 * pe * simd
                );
            }
        }
        let bits = |n: u32| (32 - n.saturating_sub(1).leading_zeros()).max(1);
        let (of_step, of_round) = (bits(steps), bits(rounds));
        let (mut next, mut last) = (String::new(), String::new());
        for p in 0..pe {
            let _ = writeln!(next, "      sums[{p}] <= next_{p};");
            let _ = writeln!(last, "        out_data[{} +: {SUM}] <= next_{p};", p * SUM);
        }
        Ok(format!(
            "{adders}// {outputs} sums of {inputs} products, {pe} x {simd} in a cycle.
module {name} (
  input  wire clk,
  input  wire rst,
  input  wire in_valid,
  output wire in_ready,
  input  wire [{in_top}:0] in_data,
  output reg  out_valid,
  output reg  [{out_top}:0] out_data);
  reg [{word_top}:0] weights [0:{last_word}];
  initial begin
{rom}  end
  reg [{in_top}:0] held [0:{last_step}];
  reg [{step_top}:0] step;
  reg [{round_top}:0] round;
  reg signed [{sum_top}:0] sums [0:{last_pe}];
  wire first = round == 0;
  assign in_ready = first;
  wire go = first ? in_valid : 1'b1;
  wire [{in_top}:0] x = first ? in_data : held[step];
  wire [{word_top}:0] w = weights[round * {steps} + step];
{elements}  always @(posedge clk) begin
    out_valid <= 0;
    if (rst) begin
      step <= 0;
      round <= 0;
    end else if (go) begin
      if (first) held[step] <= in_data;
{next}      if (step == {last_step}) begin
{last}        step <= 0;
        out_valid <= 1;
        round <= round == {last_round} ? 0 : round + 1;
      end else step <= step + 1;
    end
  end
endmodule
",
            adders = adders(name, simd),
            elements = (0..pe / 2)
                .map(|q| elements(name, q, simd))
                .collect::<String>(),
            in_top = 8 * simd - 1,
            out_top = SUM * pe - 1,
            word_top = 8 * pe * simd - 1,
            last_word = steps * rounds - 1,
            last_step = steps - 1,
            step_top = of_step - 1,
            round_top = of_round - 1,
            sum_top = SUM - 1,
            last_pe = pe - 1,
            last_round = rounds - 1,
        ))
    }
}

/// An addition of two numbers: those that were there first, and sums after them.
struct Add {
    of: [usize; 2],
    /// Bits of the sum.
    width: u32,
}

/// The additions that make one number of so many products.
fn tree(products: u32) -> Vec<Add> {
    let mut widths = vec![PRODUCT; products as usize];
    let mut adds = vec![];
    while 2 * adds.len() + 1 < widths.len() {
        let of = [2 * adds.len(), 2 * adds.len() + 1];
        let width = widths[of[0]].max(widths[of[1]]) + 1;
        widths.push(width);
        adds.push(Add { of, width });
    }
    adds
}

/// The modules that add: two numbers, and one to a sum or to none; each adds a bit besides.
fn adders(name: &str, simd: u32) -> String {
    let tree = tree(simd);
    let mut widths: Vec<u32> = tree.iter().map(|add| add.width).collect();
    let all = widths.last().copied().unwrap_or(PRODUCT);
    widths.dedup();
    let mut text = String::new();
    for width in widths {
        let (top, of) = (width - 1, width - 2);
        let _ = write!(
            text,
            "(* keep_hierarchy *)
module {name}_add_{width} (input wire signed [{of}:0] a, b, input wire c, output wire signed [{top}:0] y);
  assign y = a + b + $signed({{1'b0, c}});
endmodule
"
        );
    }
    let (top, of) = (SUM - 1, all - 1);
    let _ = write!(
        text,
        "(* keep_hierarchy *)
module {name}_sum (input wire signed [{top}:0] sum, input wire clear, input wire signed [{of}:0] b, input wire c,
  output wire signed [{top}:0] y);
  assign y = (clear ? 0 : sum) + b + $signed({{1'b0, c}});
endmodule
"
    );
    text
}

/// Two sums, `2 q` and `2 q + 1`: their products, which share multipliers, and what becomes of the sums in a step.
fn elements(name: &str, q: u32, simd: u32) -> String {
    let mut text = String::new();
    let high = PRODUCT;
    let top = 2 * PRODUCT - 1;
    for s in 0..simd {
        let (of_low, of_high) = (8 * (2 * q * simd + s), 8 * ((2 * q + 1) * simd + s));
        // Two weights 18 bits apart times one input; a negative low product has borrowed one from the high one.
        let _ = write!(
            text,
            "  wire [7:0] low_{q}_{s} = w[{of_low} +: 8];
  wire signed [8:0] high_{q}_{s} = $signed(w[{of_high} +: 8]) - $signed({{1'b0, low_{q}_{s}[7]}});
  wire signed [26:0] pair_{q}_{s} = {{high_{q}_{s}, {{10{{low_{q}_{s}[7]}}}}, low_{q}_{s}}};
  wire signed [{top}:0] product_{q}_{s} = pair_{q}_{s} * $signed({{1'b0, x[{at} +: 8]}});
",
            at = 8 * s
        );
    }
    for half in 0..2 {
        let p = 2 * q + half;
        let range = [(high - 1, 0), (top, high)][half as usize];
        let mut terms: Vec<String> = (0..simd)
            .map(|s| format!("$signed(product_{q}_{s}[{}:{}])", range.0, range.1))
            .collect();
        // As many additions as products, so that each takes what one was borrowed.
        let borrowed = |s: usize| match half {
            0 => "1'b0".to_owned(),
            _ => format!("product_{q}_{s}[{}]", high - 1),
        };
        for (n, add) in tree(simd).into_iter().enumerate() {
            let [a, b] = add.of.map(|at| terms[at].clone());
            let (width, top, c) = (add.width, add.width - 1, borrowed(n));
            let _ = write!(
                text,
                "  wire signed [{top}:0] sum_{p}_{n};
  {name}_add_{width} add_{p}_{n} (.a({a}), .b({b}), .c({c}), .y(sum_{p}_{n}));
"
            );
            terms.push(format!("sum_{p}_{n}"));
        }
        let (b, c) = (
            terms.last().cloned().unwrap_or_default(),
            borrowed(simd as usize - 1),
        );
        let _ = write!(
            text,
            "  wire signed [{}:0] next_{p};
  {name}_sum sum_{p} (.sum(sums[{p}]), .clear(step == 0), .b({b}), .c({c}), .y(next_{p}));
",
            SUM - 1
        );
    }
    text
}
