//! The processing elements of a folded product as SystemVerilog: what the HLS compiler is expected to make of the loop nest,
//! small enough for open tools to simulate and to count.
//!
//! ```text
//! in_data  SIMD codes  ──►  held (first round) ──►  PE x SIMD products, two to a DSP  ──►  PE sums  ──►  out_data
//!                            weights: one word of PE x SIMD codes for each step ───┘
//! ```
//! `in_ready` is up in the first round, in which the `MW / SIMD` words of a vector are taken and held; each round makes `PE`
//! sums. A step in every cycle, so a vector takes `(MH / PE) * (MW / SIMD)` cycles.

use std::fmt::Write;

/// Bits of a sum.
const SUM: u32 = 32;

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
        Ok(format!(
            "// {outputs} sums of {inputs} products, {pe} x {simd} in a cycle.
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
  integer p, s;
  reg signed [{sum_top}:0] low_sum, high_sum;
  reg signed [26:0] pair;
  reg signed [44:0] product;
  always @(posedge clk) begin
    out_valid <= 0;
    if (rst) begin
      step <= 0;
      round <= 0;
    end else if (go) begin
      if (first) held[step] <= in_data;
      for (p = 0; p < {pe}; p = p + 2) begin
        low_sum = step == 0 ? 0 : sums[p];
        high_sum = step == 0 ? 0 : sums[p + 1];
        for (s = 0; s < {simd}; s = s + 1) begin
          // Two weights 18 bits apart times one input; a negative low product has borrowed one from the high one.
          pair = ($signed(w[((p + 1) * {simd} + s) * 8 +: 8]) <<< 18) + $signed(w[(p * {simd} + s) * 8 +: 8]);
          product = pair * $signed({{1'b0, x[s * 8 +: 8]}});
          low_sum = low_sum + $signed(product[17:0]);
          high_sum = high_sum + $signed(product[44:18]) + $signed({{1'b0, product[17]}});
        end
        sums[p] <= low_sum;
        sums[p + 1] <= high_sum;
        if (step == {last_step}) begin
          out_data[p * {SUM} +: {SUM}] <= low_sum;
          out_data[(p + 1) * {SUM} +: {SUM}] <= high_sum;
        end
      end
      if (step == {last_step}) begin
        step <= 0;
        out_valid <= 1;
        round <= round == {last_round} ? 0 : round + 1;
      end else step <= step + 1;
    end
  end
endmodule
",
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
