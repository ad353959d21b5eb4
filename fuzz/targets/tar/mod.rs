//! Archives whose checksums are right, so that more than the first header is read of them.

const BLOCK: usize = 512;

/// Makes the checksums of all headers right, as far as the headers can be told.
pub fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut archive = input.to_vec();
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = header[124..136].iter().filter(|byte| (b'0'..=b'7').contains(*byte));
        let size = size.fold(0_usize, |size, digit| size.saturating_mul(8) + usize::from(digit - b'0'));
        at = at.saturating_add(BLOCK).saturating_add(size.min(1 << 40).next_multiple_of(BLOCK));
    }
    archive
}
