//! How long a client waits for a response, as a field of its request says.

use core::time::Duration;

/// How such a field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// A number of milliseconds, in digits.
    Milliseconds,
    /// A number of up to 8 digits, and its unit: `H`, `M`, `S`, `m`, `u` or `n`. See
    /// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
    Grpc,
}

impl Notation {
    /// Bytes that [`Notation::write`] takes.
    pub const WIDTH: usize = 9;
    /// The longest time that can be written, in milliseconds: more than a day.
    const MOST: u128 = 99_999_999;

    /// That of the field of this name.
    pub fn of(name: &[u8]) -> Self {
        if name.eq_ignore_ascii_case(b"grpc-timeout") { Self::Grpc } else { Self::Milliseconds }
    }

    /// Reads a value; `None` if it is none.
    pub fn read(self, value: &[u8]) -> Option<Duration> {
        match self {
            Self::Milliseconds => digits(value, 10).map(Duration::from_millis),
            Self::Grpc => {
                let (unit, number) = value.split_last()?;
                let number = digits(number, 8)?;
                Some(match unit {
                    b'H' => Duration::from_secs(number * 3600),
                    b'M' => Duration::from_secs(number * 60),
                    b'S' => Duration::from_secs(number),
                    b'm' => Duration::from_millis(number),
                    b'u' => Duration::from_micros(number),
                    b'n' => Duration::from_nanos(number),
                    _ => return None,
                })
            }
        }
    }

    /// Writes a time, in whole milliseconds, behind as many blanks as make it as long as any other.
    pub fn write(self, time: Duration) -> [u8; Self::WIDTH] {
        let mut text = [b' '; Self::WIDTH];
        let mut end = Self::WIDTH;
        if self == Self::Grpc {
            end -= 1;
            text[end] = b'm';
        }
        let mut ms = time.as_millis().min(Self::MOST) as u32;
        loop {
            end -= 1;
            text[end] = b'0' + (ms % 10) as u8;
            ms /= 10;
            if ms == 0 {
                return text;
            }
        }
    }
}

/// A number in 1 to `most` digits.
fn digits(text: &[u8], most: usize) -> Option<u64> {
    if !(1..=most).contains(&text.len()) {
        return None;
    }
    text.iter()
        .try_fold(0, |number: u64, byte| byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use proptest::prelude::*;

    use Notation::{Grpc, Milliseconds};

    #[test]
    fn times_are_read_and_nothing_else_is() {
        let ms = |ms| Some(Duration::from_millis(ms));
        for (text, time) in
            [("0", ms(0)), ("007", ms(7)), ("1500", ms(1500)), ("9999999999", ms(9_999_999_999))]
        {
            assert_eq!(Milliseconds.read(text.as_bytes()), time, "{text}");
        }
        for text in ["", "-1", "+1", "1.5", "1s", "1 ", "0x1", "10000000000", "1,2"] {
            assert_eq!(Milliseconds.read(text.as_bytes()), None, "{text}");
        }
        for (text, time) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5)] {
            assert_eq!(Grpc.read(text.as_bytes()), ms(time), "{text}");
        }
        assert_eq!(Grpc.read(b"6000000n"), ms(6));
        for text in ["", "m", "1", "1s", "1h", "123456789m", "-1m", "1 m", "m1"] {
            assert_eq!(Grpc.read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Notation::of(b"GRPC-Timeout"), Grpc);
        assert_eq!(Notation::of(b"X-Request-Timeout"), Milliseconds);
    }

    #[test]
    fn times_are_written_in_the_same_width() {
        assert_eq!(&Milliseconds.write(Duration::from_millis(250)), b"      250");
        assert_eq!(&Milliseconds.write(Duration::ZERO), b"        0");
        assert_eq!(&Grpc.write(Duration::from_micros(1999)), b"       1m");
        assert_eq!(&Grpc.write(Duration::MAX), b"99999999m");
        assert_eq!(&Milliseconds.write(Duration::MAX), b" 99999999");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(ms in 0..100_000_000u64) {
            for notation in [Milliseconds, Grpc] {
                let text = notation.write(Duration::from_millis(ms));
                let text = String::from_utf8(text.into()).unwrap();
                prop_assert_eq!(notation.read(text.trim_start().as_bytes()), Some(Duration::from_millis(ms)));
            }
        }

        #[test]
        fn any_bytes_are_borne(value: alloc::vec::Vec<u8>) {
            for notation in [Milliseconds, Grpc] {
                let _ = notation.read(&value);
            }
        }
    }
}
