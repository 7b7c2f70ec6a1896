//! How large a volume becomes. Exact bytes, always.

use crate::error::Error;

/// Sizes are multiples of this: nvmet exports 512-byte blocks, file systems and guests use
/// blocks of 4096, and a device that ends within one invites trouble on every layer.
pub const GRANULE: u64 = 4096;

/// The size of a volume for which none was asked.
pub const DEFAULT_SIZE: u64 = 1 << 30;

/// A size that may be made, and what would do as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizePlan {
    /// What to make: a multiple of [`GRANULE`].
    pub size: u64,
    required: u64,
    limit: Option<u64>,
}

impl SizePlan {
    /// From a CSI capacity range: (required bytes, limit bytes), 0 for "not given".
    ///
    /// # Errors
    /// For a range that is empty, negative or contradicts itself, and when no multiple of
    /// [`GRANULE`] lies within it.
    pub fn new(range: Option<(i64, i64)>) -> Result<Self, Error> {
        let Some((required, limit)) = range else {
            return Ok(Self { size: DEFAULT_SIZE, required: 0, limit: None });
        };
        let (Ok(required), Ok(limit)) = (u64::try_from(required), u64::try_from(limit)) else {
            return Err(Error::Invalid(format!(
                "capacity_range: required_bytes {required}, limit_bytes {limit}: a size cannot be negative"
            )));
        };
        if required == 0 && limit == 0 {
            return Err(Error::Invalid(
                "capacity_range: size 0: give required_bytes, or no range at all for 1 GiB".into(),
            ));
        }
        let limit = Some(limit).filter(|l| *l > 0);
        if let Some(limit) = limit.filter(|l| *l < required) {
            return Err(Error::Invalid(format!(
                "capacity_range: limit_bytes {limit} is less than required_bytes {required}"
            )));
        }
        let down = |n: u64| n / GRANULE * GRANULE;
        let size = match (required, limit) {
            (0, Some(limit)) => down(limit).min(DEFAULT_SIZE),
            (required, _) => required.div_ceil(GRANULE).saturating_mul(GRANULE),
        };
        let fits = limit.is_none_or(|l| size <= l) && i64::try_from(size).is_ok();
        if size == 0 || !fits {
            return Err(Error::OutOfRange(format!(
                "capacity_range: sizes are multiples of {GRANULE} bytes and none lies between {required} and {}",
                limit.map_or_else(|| "the largest possible".to_owned(), |l| l.to_string()),
            )));
        }
        Ok(Self { size, required, limit })
    }

    /// For a volume that is made from something of this size: never smaller, and exactly as
    /// large where nothing was asked for.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` if less was asked for, or allowed.
    pub fn made_from(self, source: u64) -> Result<Self, Error> {
        let asked = self.required > 0;
        let size = if asked { self.size } else { source };
        if size < source || self.limit.is_some_and(|l| size > l) {
            return Err(Error::OutOfRange(format!(
                "capacity_range: the source has {source} bytes, and what is made from it cannot \
                 be smaller; asked for are {} to {} bytes",
                self.required,
                self.limit.map_or_else(|| "any number of".to_owned(), |l| l.to_string()),
            )));
        }
        Ok(Self { size, ..self })
    }

    /// Whether a volume of this size is what was asked for.
    #[must_use]
    pub fn admits(&self, actual: u64) -> bool {
        actual >= self.required && self.limit.is_none_or(|l| actual <= l)
    }
}

/// A size as CSI writes it.
///
/// # Errors
/// If it does not fit, which no appliance can have.
pub fn csi_bytes(size: u64) -> Result<i64, Error> {
    i64::try_from(size).map_err(|_| Error::Internal(format!("size {size} does not fit CSI")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use tonic::Code;

    #[test]
    fn sizes_are_pinned() {
        for (range, want) in [
            (None, 1 << 30),
            (Some((1, 0)), 4096),
            (Some((4096, 4096)), 4096),
            (Some((4097, 0)), 8192),
            (Some((0, 10_000)), 8192),
            (Some((0, 1 << 40)), 1 << 30),
            // 1536 MiB once became 1 GB.
            (Some((1_610_612_736, 0)), 1_610_612_736),
        ] {
            assert_eq!(SizePlan::new(range).unwrap().size, want, "{range:?}");
        }
    }

    #[test]
    fn wrong_ranges_are_refused_by_code() {
        for (range, code) in [
            ((0, 0), Code::InvalidArgument),
            ((-1, 0), Code::InvalidArgument),
            ((0, -1), Code::InvalidArgument),
            ((8192, 4096), Code::InvalidArgument),
            ((4097, 5000), Code::OutOfRange),
            ((0, 4095), Code::OutOfRange),
            ((i64::MAX, 0), Code::OutOfRange),
        ] {
            assert_eq!(SizePlan::new(Some(range)).unwrap_err().code(), code, "{range:?}");
        }
    }

    #[test]
    fn what_is_made_from_something_is_never_smaller() {
        let made = |range, source| SizePlan::new(range).unwrap().made_from(source);
        assert_eq!(made(None, 8192).unwrap().size, 8192);
        assert_eq!(made(Some((4096, 0)), 4096).unwrap().size, 4096);
        assert_eq!(made(Some((16_384, 0)), 8192).unwrap().size, 16_384);
        assert_eq!(made(Some((0, 16_384)), 8192).unwrap().size, 8192);
        for range in [Some((4096, 0)), Some((4096, 8192)), Some((0, 8192))] {
            assert_eq!(made(range, 12_288).unwrap_err().code(), Code::OutOfRange);
        }
    }

    proptest! {
        #[test]
        fn a_plan_admits_what_it_makes(required in any::<i64>(), limit in any::<i64>()) {
            if let Ok(plan) = SizePlan::new(Some((required, limit))) {
                prop_assert!(plan.admits(plan.size));
                prop_assert_eq!(plan.size % GRANULE, 0);
                prop_assert!(plan.size >= u64::try_from(required).unwrap());
                prop_assert!(csi_bytes(plan.size).is_ok());
            }
        }
    }
}
