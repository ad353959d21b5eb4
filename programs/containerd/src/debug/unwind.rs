//! From a copy of a thread's stack to the functions that it is in, by the unwind tables of the program and its
//! libraries.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;

use corten_sys::Sample;
use framehop::{
    CacheNative, ExplicitModuleSectionInfo, MayAllocateDuringUnwind, Module, UnwindRegsNative, Unwinder as _,
    UnwinderNative,
};
use object::read::ReadCache;
use object::{Object, ObjectSection, ObjectSegment};

/// Frames that are kept of a stack.
const DEPTH: usize = 128;

/// Knows the program and the libraries of this process.
pub struct Unwinder {
    native: UnwinderNative<Vec<u8>, MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
}

impl Unwinder {
    /// As they are loaded now. What cannot be read ends a stack where it comes.
    pub fn of_this_process() -> Self {
        let mut native = UnwinderNative::new();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        for (path, range) in images(&maps) {
            if let Some(sections) = sections(&path) {
                native.add_module(Module::new(path, range.clone(), range.start, sections));
            }
        }
        Self { native, cache: CacheNative::new() }
    }

    /// Addresses within the functions, innermost first.
    pub fn stack(&mut self, sample: &Sample) -> Vec<u64> {
        let mut read = |address: u64| {
            let offset = address.checked_sub(sample.stack_pointer).ok_or(())?;
            let offset = usize::try_from(offset).map_err(drop)?;
            let word = sample.stack.get(offset..offset.checked_add(8).ok_or(())?).ok_or(())?;
            Ok(u64::from_le_bytes(word.try_into().map_err(drop)?))
        };
        let registers = registers(sample);
        let mut frames = self.native.iter_frames(sample.instruction, registers, &mut self.cache, &mut read);
        let mut stack = Vec::new();
        while stack.len() < DEPTH
            && let Ok(Some(frame)) = frames.next()
        {
            stack.push(frame.address_for_lookup());
        }
        stack
    }
}

#[cfg(target_arch = "x86_64")]
fn registers(sample: &Sample) -> UnwindRegsNative {
    UnwindRegsNative::new(sample.instruction, sample.stack_pointer, sample.frame_pointer)
}

#[cfg(target_arch = "aarch64")]
fn registers(sample: &Sample) -> UnwindRegsNative {
    UnwindRegsNative::new(sample.link, sample.stack_pointer, sample.frame_pointer)
}

/// The files that are mapped with code in them, and where: a range from the first mapping to the last.
fn images(maps: &str) -> BTreeMap<String, Range<u64>> {
    let mut all: BTreeMap<String, (Range<u64>, bool)> = BTreeMap::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(mode), Some(path)) = (fields.next(), fields.next(), fields.nth(3)) else {
            continue;
        };
        let Some((begin, end)) = range.split_once('-') else { continue };
        let (Ok(begin), Ok(end)) = (u64::from_str_radix(begin, 16), u64::from_str_radix(end, 16)) else {
            continue;
        };
        if !path.starts_with('/') {
            continue;
        }
        let (known, code) = all.entry(path.to_owned()).or_insert((begin..end, false));
        *known = known.start.min(begin)..known.end.max(end);
        *code |= mode.contains('x');
    }
    all.into_iter().filter(|(_, (_, code))| *code).map(|(path, (range, _))| (path, range)).collect()
}

fn sections(path: &str) -> Option<ExplicitModuleSectionInfo<Vec<u8>>> {
    // The running program may have been replaced by a newer one.
    let own = std::env::current_exe().ok().filter(|exe| exe.to_str() == Some(path));
    let file = File::open(own.map_or(path, |_| "/proc/self/exe")).ok()?;
    let cache = ReadCache::new(file);
    let object = object::File::parse(&cache).ok()?;
    let range = |name: &str| {
        let section = object.section_by_name(name)?;
        Some(section.address()..section.address().checked_add(section.size())?)
    };
    let data = |name: &str| Some(object.section_by_name(name)?.data().ok()?.to_vec());
    // Programs that are not to be moved have addresses of their own.
    let base = object.segments().map(|segment| segment.address()).min().unwrap_or(0) & !0xfff;
    Some(ExplicitModuleSectionInfo {
        base_svma: base,
        text_svma: range(".text"),
        text: data(".text"),
        got_svma: range(".got"),
        eh_frame_svma: range(".eh_frame"),
        eh_frame: data(".eh_frame"),
        eh_frame_hdr_svma: range(".eh_frame_hdr"),
        eh_frame_hdr: data(".eh_frame_hdr"),
        ..ExplicitModuleSectionInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_span_all_of_their_mappings() {
        let maps = "1000-2000 r--p 00000000 08:01 7 /usr/bin/x\n\
                    2000-5000 r-xp 00001000 08:01 7 /usr/bin/x\n\
                    6000-7000 rw-p 00000000 00:00 0 [heap]\n\
                    8000-9000 r--p 00000000 08:01 9 /usr/share/data\n\
                    9000-a000 rw-p 00004000 08:01 7 /usr/bin/x\n\
                    b000-c000 r-xp 00000000 00:00 0 [vdso]\n";
        let found: Vec<_> = images(maps).into_iter().collect();
        assert_eq!(found, [("/usr/bin/x".to_owned(), 0x1000..0xa000)]);
    }
}
