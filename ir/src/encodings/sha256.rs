//! SHA-256, for tests that compare generated tables with the published ones.

/// The digest in hexadecimal digits (FIPS 180-4); constants are digits of roots of the first primes.
pub fn sha256(bytes: &[u8]) -> String {
    let primes = (2u32..).filter(|n| (2..*n).all(|d| n % d != 0));
    let primes: Vec<f64> = primes.take(64).map(f64::from).collect();
    let digits = |root: f64| (root.fract() * 2f64.powi(32)) as u32;
    let mut state: Vec<u32> = primes[..8].iter().map(|p| digits(p.sqrt())).collect();
    let mut padded = [bytes, &[0x80]].concat();
    padded.resize((bytes.len() + 9).next_multiple_of(64) - 8, 0);
    padded.extend((8 * bytes.len() as u64).to_be_bytes());
    for block in padded.chunks(64) {
        let word = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
        let mut w: Vec<u32> = block.chunks(4).map(word).collect();
        let turned = |x: u32, by: [u32; 3]| by.map(|n| x.rotate_right(n));
        for i in 16..64 {
            let [a, b, _] = turned(w[i - 15], [7, 18, 0]);
            let [c, d, _] = turned(w[i - 2], [17, 19, 0]);
            let sums = (a ^ b ^ (w[i - 15] >> 3), c ^ d ^ (w[i - 2] >> 10));
            let next = w[i - 16].wrapping_add(sums.0).wrapping_add(w[i - 7]);
            w.push(next.wrapping_add(sums.1));
        }
        let mut s = state.clone();
        for (w, p) in w.iter().zip(&primes) {
            let [a, b, c] = turned(s[4], [6, 11, 25]);
            let chosen = (s[4] & s[5]) ^ (!s[4] & s[6]);
            let first = [a ^ b ^ c, chosen, digits(p.cbrt()), *w];
            let first = first.iter().fold(s[7], |sum, x| sum.wrapping_add(*x));
            let [a, b, c] = turned(s[0], [2, 13, 22]);
            let most = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
            s.rotate_right(1);
            s[0] = first.wrapping_add(a ^ b ^ c).wrapping_add(most);
            s[4] = s[4].wrapping_add(first);
        }
        state
            .iter_mut()
            .zip(s)
            .for_each(|(t, s)| *t = t.wrapping_add(s));
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

#[test]
fn digests_are_the_standard_ones() {
    assert_eq!(
        sha256(b"abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}
