//! The C library's heap.

/// Gives unused heap back to the system.
pub fn trim_heap() {
    // SAFETY: has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// Tells the allocator to keep to a few arenas, and to give back early what is over `kept` bytes.
pub fn economize_heap(arenas: i32, kept: i32) {
    // SAFETY: sets tunables; called before there are threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
        libc::mallopt(libc::M_TRIM_THRESHOLD, kept);
        libc::mallopt(libc::M_MMAP_THRESHOLD, kept);
    }
}

/// Lets go of the mapped pages of this program's own text: what is still in use comes back from the page
/// cache when it is next touched, what only the start needed does not.
pub fn release_text() {
    let (Ok(maps), Ok(program)) =
        (std::fs::read_to_string("/proc/self/maps"), std::fs::read_link("/proc/self/exe"))
    else {
        return;
    };
    for range in text_ranges(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is a private mapping of a file that nobody has written to, so that what is read
        // from it next is what was there before.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
}

/// Addresses of a program's code, from proc(5)'s `maps`. Data that the loader changed, and protected then, is
/// not among them.
fn text_ranges(maps: &str, program: &str) -> Vec<std::ops::Range<usize>> {
    let parse = |line: &str| {
        let (fields, path) = line.split_at_checked(line.find('/')?)?;
        let mut fields = fields.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_code = fields.next()? == "r-xp" && path == program;
        let address = |text| usize::from_str_radix(text, 16).ok();
        is_code.then_some(address(start)?..address(end)?)
    };
    maps.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_itself_is_text() {
        let maps = "55d0a000-55d0b000 r--p 00000000 fe:00 7    /usr/bin/containerd\n\
                    55d0b000-55d0d000 r-xp 00001000 fe:00 7    /usr/bin/containerd\n\
                    55d0d000-55d0e000 r--p 00003000 fe:00 7    /usr/bin/containerd\n\
                    7f000000-7f001000 r-xp 00000000 fe:00 8    /usr/lib/libc.so.6\n\
                    7ffd0000-7ffd1000 r-xp 00000000 00:00 0    [vdso]\n";
        let text = 0x55d0_b000..0x55d0_d000;
        assert_eq!(text_ranges(maps, "/usr/bin/containerd"), [text]);
    }

    #[test]
    fn a_program_goes_on_without_its_text() {
        let sum = || (0..1000_u64).map(std::hint::black_box).sum::<u64>();
        let before = sum();
        release_text();
        assert_eq!(sum(), before);
    }
}
