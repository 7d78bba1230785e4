//! Words and numbers of a command line.

/// Splits a line into words, wherever one or more spaces are. Like memcached, and unlike HTTP, no other
/// character separates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Words<'a> {
    /// The words of `line` from `at` on.
    pub fn from(line: &'a [u8], at: usize) -> Self {
        Self { line, at }
    }

    /// The next word and where it starts.
    pub fn next_at(&mut self) -> Option<(usize, &'a [u8])> {
        while self.line.get(self.at) == Some(&b' ') {
            self.at += 1;
        }
        let start = self.at;
        if start >= self.line.len() {
            return None;
        }
        let rest = &self.line[start..];
        let len = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        self.at = start + len;
        Some((start, &rest[..len]))
    }

    /// Where the words end that were taken.
    pub fn at(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.next_at().map(|(_, word)| word)
    }
}

/// A number in plain decimal digits, up to `most`. Signs, and zeros ahead of other digits, are refused:
/// versions of memcached differ in what they make of them.
pub(super) fn number(word: &[u8], most: u64) -> Option<u64> {
    if word.is_empty() || word.len() > 20 || (word.len() > 1 && word[0] == b'0') {
        return None;
    }
    let mut value = 0u64;
    for &byte in word {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    (value <= most).then_some(value)
}

/// Whether this is a time: seconds, negative ones for what has passed already.
pub(super) fn is_time(word: &[u8]) -> bool {
    number(word.strip_prefix(b"-").unwrap_or(word), i32::MAX as u64).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn words_are_separated_by_spaces_alone() {
        let words: Vec<&[u8]> = Words::from(b"  get a\tb   c ", 0).collect();
        assert_eq!(words, [&b"get"[..], b"a\tb", b"c"]);
        assert_eq!(Words::from(b"   ", 0).next(), None);
        assert_eq!(Words::from(b"get a", 3).next_at(), Some((4, &b"a"[..])));
    }

    #[test]
    fn numbers_are_canonical() {
        for (word, value) in [
            (&b"0"[..], Some(0)),
            (b"17", Some(17)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"", None),
            (b"00", None),
            (b"07", None),
            (b"+1", None),
            (b"-1", None),
            (b"1a", None),
            (b"0x1", None),
        ] {
            assert_eq!(number(word, u64::MAX), value, "{word:?}");
        }
        assert_eq!(number(b"11", 10), None);
        assert!(is_time(b"-1") && is_time(b"2147483647") && !is_time(b"2147483648") && !is_time(b"-"));
    }
}
