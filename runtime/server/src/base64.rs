//! Base64, in which clients take vectors as bytes. Source: RFC 4648, section 4.

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text of bytes, with padding.
pub fn encode(bytes: impl ExactSizeIterator<Item = u8>) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    let mut bytes = bytes.peekable();
    while bytes.peek().is_some() {
        let three = [(); 3].map(|()| bytes.next());
        let given = three.iter().flatten().count();
        let bits = three
            .iter()
            .fold(0, |all, b| all << 8 | usize::from(b.unwrap_or(0)));
        for place in 0..4 {
            let letter = LETTERS[bits >> (18 - 6 * place) & 63];
            text.push(if place <= given { letter.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_source_hold() {
        for (bytes, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.bytes()), want);
        }
        assert_eq!(encode([0xFB, 0xFF, 0xFE].into_iter()), "+//+");
    }
}
