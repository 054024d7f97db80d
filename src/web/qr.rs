//! QR codes as PNG images with one bit per pixel, uncompressed because they are small.

use qrcode::{Color, EcLevel, QrCode};

/// Pixels per module and dimension.
const SCALE: usize = 5;
/// Width in modules of the light border that readers need (ISO/IEC 18004).
const BORDER: usize = 4;

/// Returns the QR code of a text as a PNG image.
///
/// # Errors
/// If the text is too long for a QR code.
pub(super) fn png(text: &str) -> std::io::Result<Vec<u8>> {
    let code = QrCode::with_error_correction_level(text, EcLevel::M);
    let code = code.map_err(|error| std::io::Error::other(format!("cannot create QR code: {error}")))?;
    let (modules, dark) = (code.width(), code.to_colors());
    let side = (modules + 2 * BORDER) * SCALE;
    let is_dark = |x: usize, y: usize| {
        let (x, y) = ((x / SCALE).checked_sub(BORDER), (y / SCALE).checked_sub(BORDER));
        matches!((x, y), (Some(x), Some(y)) if x < modules && y < modules && dark[y * modules + x] == Color::Dark)
    };
    let mut lines = Vec::with_capacity(side * (side / 8 + 2));
    for y in 0..side {
        // Filter type: none.
        lines.push(0);
        for from in (0..side).step_by(8) {
            let bit = |byte: u8, x: usize| byte << 1 | u8::from(!is_dark(x, y));
            lines.push((from..from + 8).fold(0, bit));
        }
    }
    Ok(picture(side, &lines))
}

/// Encodes lines with one bit per pixel, where 1 is white, as PNG (RFC 2083).
fn picture(side: usize, lines: &[u8]) -> Vec<u8> {
    let length = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        png.extend(length(data.len()));
        let body = [kind, data].concat();
        png.extend(&body);
        png.extend(crc32(&body).to_be_bytes());
    };
    // Width, height, bit depth 1, greyscale, and the only defined compression, filter and interlace methods.
    chunk(b"IHDR", &[&length(side)[..], &length(side), &[1, 0, 0, 0, 0]].concat());
    chunk(b"IDAT", &stored(lines));
    chunk(b"IEND", &[]);
    png
}

/// Returns a zlib stream (RFC 1950) of stored blocks (RFC 1951, 3.2.4).
fn stored(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let mut blocks = data.chunks(usize::from(u16::MAX)).peekable();
    while let Some(block) = blocks.next() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    stream.extend(adler32(data).to_be_bytes());
    stream
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

fn adler32(data: &[u8]) -> u32 {
    let (low, high) = data.iter().fold((1_u32, 0_u32), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_standards() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    /// Returns the data that `stored` put into a zlib stream.
    fn inflated(stream: &[u8]) -> Vec<u8> {
        let (mut at, mut data) = (2, Vec::new());
        loop {
            let number = |at: usize| u16::from_le_bytes([stream[at], stream[at + 1]]);
            let (is_last, length) = (stream[at] == 1, number(at + 1));
            assert_eq!(number(at + 3), !length);
            data.extend(&stream[at + 5..at + 5 + usize::from(length)]);
            at += 5 + usize::from(length);
            if is_last {
                assert_eq!(stream[at..], adler32(&data).to_be_bytes());
                return data;
            }
        }
    }

    #[test]
    fn long_data_are_stored_in_several_blocks() {
        for length in [1, 65_535, 65_536, 200_000] {
            let data: Vec<u8> = (0..=255).cycle().take(length).collect();
            assert_eq!(inflated(&stored(&data)), data);
        }
    }

    #[test]
    fn a_picture_shows_the_modules_of_the_code_in_a_light_frame() {
        let text = "otpauth://totp/Gravwell:admin?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
        let png = png(text).expect("a picture");
        let number = |at: usize| u32::from_be_bytes([png[at], png[at + 1], png[at + 2], png[at + 3]]) as usize;
        let (side, length) = (number(16), number(33));
        assert_eq!((&png[12..16], &png[37..41], number(20)), (&b"IHDR"[..], &b"IDAT"[..], side));
        assert_eq!(number(41 + length) as u32, crc32(&png[37..41 + length]));
        let lines = inflated(&png[41..41 + length]);
        let row = side.div_ceil(8) + 1;
        assert_eq!(lines.len(), side * row);
        let is_dark = |x: usize, y: usize| lines[y * row + 1 + x / 8] >> (7 - x % 8) & 1 == 0;
        let code = QrCode::with_error_correction_level(text, EcLevel::M).expect("a code");
        let modules = code.width();
        assert_eq!(side, (modules + 2 * BORDER) * SCALE);
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            let inside = |at: usize| (BORDER * SCALE..(BORDER + modules) * SCALE).contains(&at);
            let module = |at: usize| at / SCALE - BORDER;
            let wanted = inside(x) && inside(y) && code[(module(x), module(y))] == Color::Dark;
            assert_eq!(is_dark(x, y), wanted, "{x} {y}");
        }
    }
}
