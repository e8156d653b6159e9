//! The Cholesky factor of a matrix that grows by a row at a time and may lose any of them.
//!
//! Besides the factor L of `M = L L^T` it keeps the forward-substituted right-hand side `y = L^-1 c`, so that the
//! solution of `M w = c` costs one back-substitution, and what it explains, `c . w = |y|^2`, is a sum. All in f64,
//! every sum in a fixed order.

use crate::ops::last_layer::dot;

/// A row is dependent on those before it where less than this share of its diagonal is left as the pivot's square.
///
/// The square of the sine of the angle between an atom and the span of the others: 1e-10 leaves their weights five to six
/// digits.
const DEPENDENT: f64 = 1e-10;

/// Lower triangle and forward-substituted right-hand side.
#[derive(Clone, Debug, Default)]
pub struct Factor {
    /// The rows of L one after the other, row i with i + 1 numbers.
    rows: Vec<f64>,
    /// `L^-1 c`.
    forward: Vec<f64>,
}

/// Where row `i` starts.
fn start(i: usize) -> usize {
    i * (i + 1) / 2
}

impl Factor {
    /// Rows of the matrix.
    pub fn len(&self) -> usize {
        self.forward.len()
    }

    pub fn is_empty(&self) -> bool {
        self.forward.is_empty()
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.rows[start(i)..start(i + 1)]
    }

    /// Adds a row to the matrix, its elements `cross` with the rows there are and its `diagonal`, and the element
    /// `right` to the right-hand side. Returns whether it did: a row that depends on the others is refused.
    ///
    /// # Panics
    /// If `cross` does not have [`Factor::len`] elements.
    pub fn append(&mut self, cross: &[f64], diagonal: f64, right: f64) -> bool {
        let len = self.len();
        assert_eq!(cross.len(), len, "a row of the matrix");
        let begin = self.rows.len();
        for (i, cross) in cross.iter().enumerate() {
            let (before, new) = self.rows.split_at(begin);
            let row = &before[start(i)..start(i + 1)];
            let value = (cross - dot(&row[..i], new)) / row[i];
            self.rows.push(value);
        }
        let new = &self.rows[begin..];
        let square = diagonal - dot(new, new);
        if square.is_nan() || square <= DEPENDENT * diagonal {
            self.rows.truncate(begin);
            return false;
        }
        let pivot = square.sqrt();
        self.forward.push((right - dot(new, &self.forward)) / pivot);
        self.rows.push(pivot);
        true
    }

    /// Takes row and column `position` out of the matrix, and its element out of the right-hand side.
    ///
    /// Without its row L is a lower triangle with one number above the diagonal in each row after it; plane rotations of
    /// neighbouring columns bring those to zero and turn y along (Golub and Van Loan, section 6.5).
    ///
    /// # Panics
    /// If there is no such row.
    pub fn remove(&mut self, position: usize) {
        let len = self.len();
        assert!(position < len, "row {position} of {len}");
        let mut rotations: Vec<(f64, f64)> = Vec::with_capacity(len - position);
        for i in position + 1..len {
            // One place up: its last number lies where the next row will be put.
            self.rows.copy_within(start(i)..start(i + 1), start(i - 1));
            let row = &mut self.rows[start(i - 1)..start(i - 1) + i + 1];
            let tail = &mut row[position..];
            for (at, &rotation) in rotations.iter().enumerate() {
                (tail[at], tail[at + 1]) = rotate(rotation, tail[at], tail[at + 1]);
            }
            let at = rotations.len();
            let radius = tail[at].hypot(tail[at + 1]);
            rotations.push((tail[at] / radius, tail[at + 1] / radius));
            tail[at] = radius;
        }
        let tail = &mut self.forward[position..];
        for (at, &rotation) in rotations.iter().enumerate() {
            (tail[at], tail[at + 1]) = rotate(rotation, tail[at], tail[at + 1]);
        }
        self.forward.pop();
        self.rows.truncate(start(len - 1));
    }

    /// The solution w of `M w = c`.
    pub fn solve(&self) -> Vec<f64> {
        let mut solution = self.forward.clone();
        for i in (0..self.len()).rev() {
            let row = self.row(i);
            let value = solution[i] / row[i];
            solution[i] = value;
            for (sum, element) in solution[..i].iter_mut().zip(row) {
                *sum -= value * element;
            }
        }
        solution
    }

    /// `c . w` of the solution.
    pub fn explained(&self) -> f64 {
        self.forward.iter().map(|value| value * value).sum()
    }
}

/// A pair of numbers turned by the angle of this cosine and sine.
fn rotate((cosine, sine): (f64, f64), left: f64, right: f64) -> (f64, f64) {
    (cosine * left + sine * right, cosine * right - sine * left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 14;

    /// A positive definite matrix without structure, and a right-hand side.
    fn problem() -> (Vec<Vec<f64>>, Vec<f64>) {
        let value = |i: usize, j: usize| ((i * 31 + j * 17 + i * j * 7) % 23) as f64 / 23.0 - 0.4;
        let vectors: Vec<Vec<f64>> = (0..SIZE)
            .map(|i| (0..SIZE + 3).map(|j| value(i, j) + f64::from(u8::from(i == j))).collect())
            .collect();
        let matrix = vectors.iter().map(|a| vectors.iter().map(|b| dot(a, b)).collect()).collect();
        (matrix, (0..SIZE).map(|i| value(i, 5)).collect())
    }

    fn append(factor: &mut Factor, matrix: &[Vec<f64>], right: &[f64], kept: &[usize], next: usize) -> bool {
        let cross: Vec<f64> = kept.iter().map(|&i| matrix[next][i]).collect();
        factor.append(&cross, matrix[next][next], right[next])
    }

    /// The largest error of `M w - c` over the rows of `kept`, and of `c . w`.
    fn check(factor: &Factor, matrix: &[Vec<f64>], right: &[f64], kept: &[usize]) {
        let solution = factor.solve();
        assert_eq!(solution.len(), kept.len());
        for &i in kept {
            let product: f64 = kept.iter().zip(&solution).map(|(&j, w)| matrix[i][j] * w).sum();
            assert!((product - right[i]).abs() < 1e-12, "row {i} of {kept:?}: {product} and {}", right[i]);
        }
        let explained: f64 = kept.iter().zip(&solution).map(|(&i, w)| right[i] * w).sum();
        assert!((factor.explained() - explained).abs() < 1e-12, "{kept:?}");
    }

    #[test]
    fn grown_and_shrunk_it_solves_the_matrix_that_is_left() {
        let (matrix, right) = problem();
        let (mut factor, mut kept) = (Factor::default(), Vec::new());
        check(&factor, &matrix, &right, &kept);
        // The removals take the first row, the last, one in between, and rows that came back.
        for (round, remove) in [None, None, None, Some(0), None, Some(2), None, None, Some(4), Some(1), None]
            .into_iter()
            .cycle()
            .take(60)
            .enumerate()
        {
            match remove {
                Some(position) if position < kept.len() => {
                    factor.remove(position);
                    kept.remove(position);
                }
                _ => {
                    let next = (0..SIZE).map(|i| (i + round * 5) % SIZE).find(|i| !kept.contains(i));
                    match next {
                        Some(next) => {
                            assert!(append(&mut factor, &matrix, &right, &kept, next));
                            kept.push(next);
                        }
                        None => {
                            factor.remove(SIZE - 1);
                            kept.pop();
                        }
                    }
                }
            }
            check(&factor, &matrix, &right, &kept);
        }
        assert!(kept.len() > 4);
    }

    #[test]
    fn a_dependent_row_is_refused_and_leaves_no_trace() {
        let mut factor = Factor::default();
        assert!(factor.append(&[], 4.0, 1.0) && factor.append(&[2.0], 5.0, 2.0));
        let before = (factor.solve(), factor.explained());
        // The sum of the two rows; then nothing at all, and no number.
        assert!(!factor.append(&[6.0, 7.0], 13.0, 3.0));
        assert!(!factor.append(&[0.0, 0.0], 0.0, 0.0));
        assert!(!factor.append(&[0.0, f64::NAN], 1.0, 0.0));
        assert_eq!((factor.solve(), factor.explained(), factor.len()), (before.0, before.1, 2));
        assert!(factor.append(&[6.0, 7.0], 13.1, 3.0));
    }
}
