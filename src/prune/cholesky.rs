//! The inverse of the Cholesky factor of a matrix that grows by a row at a time and may lose any of them.
//!
//! With `M = L L^T` it keeps the rows of `L^-1`, `y = L^-1 c` and the solution `w = L^-T y` of `M w = c`. A new row of M needs the products
//! of `L^-1` and of `L^-T` with one vector each, which takes one pass over the rows, for any number of new rows at once; with L itself there are
//! two substitutions, the second for each solution anew. What the solution explains, `c . w = |y|^2`, is a sum. All in f64, every
//! sum in a fixed order.

use rayon::prelude::*;

use crate::cpu::doubles::{Doubles, PROJECTED};

/// A row is dependent on those before it where less than this share of its diagonal is left as the pivot's square.
///
/// The square of the sine of the angle between an atom and the span of the others: 1e-10 leaves their weights five to six
/// digits.
const DEPENDENT: f64 = 1e-10;
/// Pending rows that are one task: each row of the factor is read once for all of them.
const TASK: usize = 4;

/// Lower triangle of the inverse, forward-substituted right-hand side and solution.
#[derive(Clone)]
pub struct Factor {
    doubles: Doubles,
    /// The rows of `L^-1` one after the other, row i with i + 1 numbers; up to a sign each.
    rows: Vec<f64>,
    /// `L^-1 c`.
    forward: Vec<f64>,
    solution: Vec<f64>,
    /// Whether `solution` is that of the present rows.
    solved: bool,
}

/// A row that may be appended, and what it makes of the first rows of a factor.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// Its elements with the rows of the matrix.
    pub cross: Vec<f64>,
    /// Its row of L: `L^-1 cross`.
    row: Vec<f64>,
    /// `L^-T row`.
    sums: Vec<f64>,
}

impl Pending {
    /// Rows of the factor that it knows.
    pub fn len(&self) -> usize {
        self.row.len()
    }

    pub fn is_empty(&self) -> bool {
        self.row.is_empty()
    }
}

/// Where row `i` starts.
fn start(i: usize) -> usize {
    i * (i + 1) / 2
}

impl Factor {
    /// Of no rows.
    pub fn new(doubles: Doubles) -> Self {
        Self { doubles, rows: Vec::new(), forward: Vec::new(), solution: Vec::new(), solved: true }
    }

    /// Rows of the matrix.
    pub fn len(&self) -> usize {
        self.forward.len()
    }

    pub fn is_empty(&self) -> bool {
        self.forward.is_empty()
    }

    /// Makes pending rows, which know as many rows of the factor, know every one; `cross` of each is complete.
    ///
    /// # Panics
    /// If it is shorter.
    pub fn prepare(&self, pending: &mut [Pending]) {
        let len = self.len();
        pending.par_chunks_mut(TASK).for_each(|pending| {
            let mut known = pending[0].len();
            pending.iter_mut().for_each(|pending| pending.sums.resize(len, 0.0));
            while known + PROJECTED <= len {
                let rows = std::array::from_fn(|n| self.row(known + n));
                for pending in &mut *pending {
                    pending.row.extend(self.doubles.project(rows, &pending.cross, &mut pending.sums));
                }
                known += PROJECTED;
            }
            for row in (known..len).map(|i| self.row(i)) {
                for pending in &mut *pending {
                    let element = self.doubles.dot(row, &pending.cross);
                    self.doubles.add(&mut pending.sums, element, row);
                    pending.row.push(element);
                }
            }
        });
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.rows[start(i)..start(i + 1)]
    }

    /// Adds a prepared row to the matrix, with its `diagonal`, and the element `right` to the right-hand side. Returns whether it did: a row
    /// that depends on the others is refused.
    ///
    /// # Panics
    /// If the row is not prepared.
    pub fn append(&mut self, pending: &Pending, diagonal: f64, right: f64) -> bool {
        let (len, doubles) = (self.len(), self.doubles);
        assert_eq!(pending.len(), len, "a row of the matrix");
        let square = diagonal - doubles.dot(&pending.row, &pending.row);
        if square.is_nan() || square <= DEPENDENT * diagonal {
            return false;
        }
        let pivot = square.sqrt();
        let forward = (right - doubles.dot(&pending.row, &self.forward)) / pivot;
        self.rows.extend(pending.sums.iter().map(|sum| -sum / pivot).chain([1.0 / pivot]));
        self.forward.push(forward);
        if self.solved {
            self.solution.push(0.0);
            doubles.add(&mut self.solution, forward, &self.rows[start(len)..]);
        }
        true
    }

    /// Takes row and column `position` out of the matrix, its element out of the right-hand side, and what pending rows know of it.
    ///
    /// Rotations of neighbouring rows of L^-1, which turn y along, gather column `position` in the last row; without that row and that
    /// column a lower triangle is left (Golub and Van Loan, section 6.5, on the inverse).
    ///
    /// # Panics
    /// If there is no such row.
    pub fn remove(&mut self, position: usize, pending: &mut [Pending]) {
        let (len, doubles) = (self.len(), self.doubles);
        assert!(position < len, "row {position} of {len}");
        for i in position..len {
            let (before, after) = self.rows.split_at_mut(start(i + 1));
            let row = &mut before[start(i)..];
            // What meets a row that it does not know forgets the row that would be turned with it.
            for pending in pending.iter_mut().filter(|pending| pending.len() == i + 1) {
                let element = pending.row.pop().expect("a row that is known");
                doubles.add(&mut pending.sums, -element, row);
                pending.sums.remove(position);
                pending.cross.remove(position);
            }
            if i + 1 == len {
                break;
            }
            let next = &mut after[..i + 2];
            let radius = row[position].hypot(next[position]);
            let (cosine, sine) = (next[position] / radius, row[position] / radius);
            let last = next[i + 1];
            doubles.rotate(cosine, sine, row, &mut next[..=i]);
            row.copy_within(position + 1.., position);
            (row[i], next[i + 1]) = (-sine * last, cosine * last);
            let pending = pending.iter_mut().filter(|pending| pending.len() > i + 1);
            for turned in pending.map(|pending| &mut pending.row).chain([&mut self.forward]) {
                let (row, next) = turned.split_at_mut(i + 1);
                doubles.rotate(cosine, sine, &mut row[i..], &mut next[..1]);
            }
        }
        self.forward.pop();
        self.rows.truncate(start(len - 1));
        self.solved = false;
    }

    /// The solution w of `M w = c`.
    pub fn solution(&mut self) -> &[f64] {
        if !self.solved {
            self.solution.clear();
            self.solution.resize(self.forward.len(), 0.0);
            for (i, &y) in self.forward.iter().enumerate() {
                self.doubles.add(&mut self.solution, y, &self.rows[start(i)..start(i + 1)]);
            }
            self.solved = true;
        }
        &self.solution
    }

    /// `c . w` of the solution.
    pub fn explained(&self) -> f64 {
        self.forward.iter().map(|value| value * value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::last_layer::dot;

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

    fn add(factor: &mut Factor, cross: &[f64], diagonal: f64, right: f64) -> bool {
        let mut pending = [Pending { cross: cross.to_vec(), ..Pending::default() }];
        factor.prepare(&mut pending);
        factor.append(&pending[0], diagonal, right)
    }

    fn append(factor: &mut Factor, matrix: &[Vec<f64>], right: &[f64], kept: &[usize], next: usize) -> bool {
        let cross: Vec<f64> = kept.iter().map(|&i| matrix[next][i]).collect();
        add(factor, &cross, matrix[next][next], right[next])
    }

    /// The largest error of `M w - c` over the rows of `kept`, and of `c . w`.
    fn check(factor: &mut Factor, matrix: &[Vec<f64>], right: &[f64], kept: &[usize]) {
        let solution = factor.solution().to_vec();
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
        let (mut factor, mut kept) = (Factor::new(Doubles::new().unwrap()), Vec::new());
        check(&mut factor, &matrix, &right, &kept);
        // The removals take the first row, the last, one in between, and rows that came back.
        for (round, remove) in [None, None, None, Some(0), None, Some(2), None, None, Some(4), Some(1), None]
            .into_iter()
            .cycle()
            .take(60)
            .enumerate()
        {
            match remove {
                Some(position) if position < kept.len() => {
                    factor.remove(position, &mut []);
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
                            factor.remove(SIZE - 1, &mut []);
                            kept.pop();
                        }
                    }
                }
            }
            check(&mut factor, &matrix, &right, &kept);
        }
        assert!(kept.len() > 4);
    }

    /// Rows that are prepared early and kept while others come and go are what they are when prepared late.
    #[test]
    fn pending_rows_outlast_removals() {
        let (matrix, right) = problem();
        let mut factor = Factor::new(Doubles::new().unwrap());
        let (mut kept, mut pooled) = ((1..10).collect::<Vec<usize>>(), Vec::new());
        let cross = |kept: &[usize]| kept.iter().map(|&i| matrix[0][i]).collect::<Vec<f64>>();
        for at in 0..kept.len() {
            // One that knows nothing, one that knows a row, and so on.
            pooled.push(Pending { cross: cross(&kept[..at]), ..Pending::default() });
            factor.prepare(&mut pooled[at..]);
            assert!(append(&mut factor, &matrix, &right, &kept[..at], kept[at]));
        }
        pooled.push(Pending { cross: cross(&kept), ..Pending::default() });
        factor.prepare(&mut pooled[kept.len()..]);
        for position in [4, 0, 6, 3] {
            factor.remove(position, &mut pooled);
            kept.remove(position);
        }
        let mut late = [Pending { cross: cross(&kept), ..Pending::default() }];
        factor.prepare(&mut late);
        for early in &mut pooled {
            let known = early.len();
            assert_eq!(early.cross, cross(&kept[..known]));
            early.cross = cross(&kept);
            factor.prepare(std::slice::from_mut(early));
            for (early, late) in [(&early.row, &late[0].row), (&early.sums, &late[0].sums)] {
                let error = early.iter().zip(late).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(early.len() == kept.len() && error < 1e-12, "{known} known: {early:?} and {late:?}");
            }
        }
    }

    #[test]
    fn a_dependent_row_is_refused_and_leaves_no_trace() {
        let mut factor = Factor::new(Doubles::new().unwrap());
        assert!(add(&mut factor, &[], 4.0, 1.0) && add(&mut factor, &[2.0], 5.0, 2.0));
        let before = (factor.solution().to_vec(), factor.explained());
        // The sum of the two rows; then nothing at all, and no number.
        assert!(!add(&mut factor, &[6.0, 7.0], 13.0, 3.0));
        assert!(!add(&mut factor, &[0.0, 0.0], 0.0, 0.0));
        assert!(!add(&mut factor, &[0.0, f64::NAN], 1.0, 0.0));
        assert_eq!((factor.solution().to_vec(), factor.explained(), factor.len()), (before.0, before.1, 2));
        assert!(add(&mut factor, &[6.0, 7.0], 13.1, 3.0));
    }
}
