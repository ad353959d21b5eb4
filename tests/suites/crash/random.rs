//! Random numbers from a seed that a failure prints.

/// Xorshift: enough to choose what comes next.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The seed in `CORTEN_SEED`, or one of this moment; it is printed, and shown when the test fails.
    pub fn seeded() -> Self {
        let given = std::env::var("CORTEN_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            time.as_nanos() as u64 ^ u64::from(std::process::id())
        });
        println!("CORTEN_SEED={seed}");
        Self(seed | 1)
    }

    /// Always the same for a text.
    pub fn of(text: &str) -> Self {
        Self(
            text.bytes().fold(0x9E37_79B9_7F4A_7C15, |seed, byte| {
                (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
            }) | 1,
        )
    }

    /// Another one, independent of this.
    pub fn fork(&mut self) -> Self {
        Self(self.next() | 1)
    }

    /// A number less than `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }
}
