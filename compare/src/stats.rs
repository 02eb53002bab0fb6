//! Medians, spreads and geometric means.

use serde::Serialize;

/// A median with what it is the median of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// The quartiles; the middle half of the values lies between them.
    pub(crate) q1: f64,
    pub(crate) q3: f64,
}

impl Spread {
    /// Of any number of finite values, in any order. `None` of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Some(Spread {
            median: quantile(&values, 0.5)?,
            min: *values.first()?,
            max: *values.last()?,
            q1: quantile(&values, 0.25)?,
            q3: quantile(&values, 0.75)?,
        })
    }
}

/// The value below which `part` of the sorted values lie, between two of them in proportion.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

/// Of positive values; the mean that fits ratios. `None` of none.
pub(crate) fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / count as f64).exp())
}

/// What came up most often; of two that did, the one seen first.
pub(crate) fn most_frequent<T: Copy + Eq>(values: impl IntoIterator<Item = T>) -> Option<T> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counts.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_odd_and_even_counts() {
        let odd = Spread::of([5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(odd, Spread { median: 3.0, min: 1.0, max: 5.0, q1: 2.0, q3: 4.0 });
        let even = Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(even, Spread { median: 2.5, min: 1.0, max: 4.0, q1: 1.75, q3: 3.25 });
    }

    #[test]
    fn spread_of_one_and_of_none() {
        let one = Spread::of([7.0]).unwrap();
        assert_eq!(one, Spread { median: 7.0, min: 7.0, max: 7.0, q1: 7.0, q3: 7.0 });
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn one_outlier_leaves_the_median_alone() {
        assert_eq!(Spread::of([1.0, 1.0, 1.0, 1.0, 900.0]).unwrap().median, 1.0);
    }

    #[test]
    fn geometric_means() {
        let mean = geometric_mean([0.5, 2.0, 1.0, 8.0]).unwrap();
        assert!((mean - 8f64.powf(0.25)).abs() < 1e-12);
        // A ratio and its inverse cancel out, which the arithmetic mean gets wrong.
        assert!((geometric_mean([4.0, 0.25]).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(geometric_mean([]), None);
    }

    #[test]
    fn majority() {
        assert_eq!(most_frequent([3, 1, 3, 2]), Some(3));
        assert_eq!(most_frequent([9, 4, 4, 9]), Some(9));
        assert_eq!(most_frequent::<u8>([]), None);
    }
}
