//! Numbers that look random and are the same each time: also for the tests inside the crate.

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// Which sectors of a write that was not flushed are on the platter after a power cut. Whole
/// writes go either way most of the time; some are torn.
pub fn survivors(random: &mut Random) -> impl FnMut() -> bool + '_ {
    let all = random.below(4);
    move || match all {
        0 => true,
        1 => false,
        _ => random.below(2) == 0,
    }
}
