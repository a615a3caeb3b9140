//! How classes share what is not enough for all.

use std::fmt;
use std::str::FromStr;

use super::{Class, PerClass};

/// The share of each class in a contended link, as a part of the sum over the classes that have something to send. A more urgent
/// class goes first as long as it keeps to its share, so these are bounds for floods, not for what comes now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights(PerClass<u32>);

/// Why weights are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// One is 0, or above [`Weights::MAX`].
    #[error("the weight of {0} is out of range: 1 to {max}", max = Weights::MAX)]
    Range(Class),
    /// Not four numbers.
    #[error("write one for each class, the most urgent first, as in {}", Weights::DEFAULT)]
    Form,
    /// Bulk would have less than a tenth of the sum.
    #[error("bulk has a weight of {bulk} of {sum}; it keeps at least a tenth")]
    Starving {
        /// Its weight.
        bulk: u32,
        /// That of all.
        sum: u32,
    },
}

impl Weights {
    /// The largest weight.
    pub const MAX: u32 = 1000;
    /// 40, 28, 20 and 12: of a link, bulk keeps a tenth and something for what is between its artifacts.
    pub const DEFAULT: Weights = Weights(PerClass([40, 28, 20, 12]));

    /// Each from 1 to [`Weights::MAX`]; that of `Bulk` at least a tenth of the sum.
    ///
    /// # Errors
    /// See [`WeightsError`].
    pub fn new(weights: PerClass<u32>) -> Result<Weights, WeightsError> {
        let wrong = Class::ALL.into_iter().find(|class| !(1..=Self::MAX).contains(&weights[*class]));
        if let Some(class) = wrong {
            return Err(WeightsError::Range(class));
        }
        let (bulk, sum) = (weights[Class::Bulk], weights.0.iter().sum());
        if bulk * 10 < sum { Err(WeightsError::Starving { bulk, sum }) } else { Ok(Weights(weights)) }
    }

    /// That of one class.
    pub fn of(self, class: Class) -> u32 {
        self.0[class]
    }

    /// What a class has of the whole, from 0 to 1.
    pub fn share(self, class: Class) -> f64 {
        let sum: u32 = self.0.0.iter().sum();
        f64::from(self.of(class)) / f64::from(sum)
    }

    /// Of `total` places those of one class, at least one.
    pub fn part(self, class: Class, total: usize) -> usize {
        let sum: u32 = self.0.0.iter().sum();
        (total * self.of(class) as usize / sum as usize).max(1)
    }
}

impl Default for Weights {
    fn default() -> Weights {
        Weights::DEFAULT
    }
}

impl FromStr for Weights {
    type Err = WeightsError;

    /// Reads `critical,high,normal,bulk`.
    fn from_str(text: &str) -> Result<Weights, WeightsError> {
        let weights: Option<Vec<u32>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        let weights = weights.and_then(|weights| <[u32; 4]>::try_from(weights).ok());
        Weights::new(PerClass(weights.ok_or(WeightsError::Form)?))
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [critical, high, normal, bulk] = self.0.0;
        write!(f, "{critical},{high},{normal},{bulk}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_checked() {
        assert_eq!(Weights::new(PerClass([40, 28, 20, 12])), Ok(Weights::DEFAULT));
        assert_eq!(Weights::new(PerClass([1, 0, 1, 1])), Err(WeightsError::Range(Class::High)));
        assert_eq!(Weights::new(PerClass([1001, 1, 1, 1])), Err(WeightsError::Range(Class::Critical)));
        let starving = Weights::new(PerClass([40, 30, 21, 10])).unwrap_err();
        assert_eq!(starving.to_string(), "bulk has a weight of 10 of 101; it keeps at least a tenth");
    }

    #[test]
    fn weights_are_read_as_they_are_shown() {
        assert_eq!("40, 28,20,12".parse(), Ok(Weights::DEFAULT));
        assert_eq!(Weights::DEFAULT.to_string().parse(), Ok(Weights::DEFAULT));
        for bad in ["", "1,2,3", "1,2,3,4,5", "1,2,3,x", "1,2,3,-1"] {
            assert_eq!(bad.parse::<Weights>(), Err(WeightsError::Form), "{bad}");
        }
    }

    #[test]
    fn every_class_has_a_part() {
        assert_eq!(Class::ALL.map(|class| Weights::DEFAULT.part(class, 256)), [102, 71, 51, 30]);
        assert_eq!(Weights::DEFAULT.part(Class::Bulk, 3), 1);
    }
}
