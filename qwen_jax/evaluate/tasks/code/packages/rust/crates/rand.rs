//! Stands in for rand 0.4, which the problems declare: numbers of a fixed sequence.
use std::cell::Cell;

thread_local!(static STATE: Cell<u64> = Cell::new(0x9e37_79b9_7f4a_7c15));

fn bits() -> u64 {
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x
    })
}

pub trait Rand {
    fn rand(bits: u64) -> Self;
}

pub trait Between {
    fn between(low: Self, high: Self, bits: u64) -> Self;
}

macro_rules! integers {
    ($($name:ty)*) => {$(
        impl Rand for $name {
            fn rand(bits: u64) -> Self {
                (bits >> 11) as $name
            }
        }
        impl Between for $name {
            fn between(low: Self, high: Self, bits: u64) -> Self {
                assert!(low < high, "gen_range: low >= high");
                let width = (high as i128 - low as i128) as u128;
                (low as i128 + (u128::from(bits >> 11) % width) as i128) as $name
            }
        }
    )*};
}
integers!(i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

macro_rules! floats {
    ($($name:ty)*) => {$(
        impl Rand for $name {
            fn rand(bits: u64) -> Self {
                unit(bits) as $name
            }
        }
        impl Between for $name {
            fn between(low: Self, high: Self, bits: u64) -> Self {
                low + (high - low) * unit(bits) as $name
            }
        }
    )*};
}
floats!(f32 f64);

impl Rand for bool {
    fn rand(bits: u64) -> Self {
        bits >> 63 == 1
    }
}

pub trait Rng {
    fn gen<T: Rand>(&mut self) -> T {
        T::rand(bits())
    }
    fn gen_range<T: Between>(&mut self, low: T, high: T) -> T {
        T::between(low, high, bits())
    }
}

pub struct ThreadRng;

impl Rng for ThreadRng {}

pub fn thread_rng() -> ThreadRng {
    ThreadRng
}

pub fn random<T: Rand>() -> T {
    T::rand(bits())
}
