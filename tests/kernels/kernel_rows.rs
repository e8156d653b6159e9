//! Rows by index (`kernels/ops/rows.cu`): every word must be where plain indexing puts it.

use secateur::ops::rows::{Rows, gather_rows, scatter_rows};

use crate::common::{Output, Random, input, on_every_driver};

/// Row lengths of labels, logits of two data sets and images, and one just beside a wide one.
const ROW_LENS: [usize; 5] = [1, 10, 100, 3072, 3071];

/// `count` different rows out of `limit`, in random order.
fn some_rows(random: &mut Random, limit: usize, count: usize) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..limit as u32).collect();
    for i in (1..limit).rev() {
        rows.swap(i, random.word() as usize % (i + 1));
    }
    rows.truncate(count);
    rows
}

#[test]
fn gathered_rows_are_the_named_ones() {
    on_every_driver("gather rows", |driver| {
        let mut seen = Vec::new();
        for row_len in ROW_LENS {
            // An offset of one row makes a 10-word row start beside 16 bytes, as a micro-batch may.
            for skipped in [0, 1] {
                let mut random = Random::new(row_len as u32);
                let (limit, count) = (13, 6);
                let from: Vec<u32> = (0..limit * row_len).map(|_| random.word()).collect();
                let rows = some_rows(&mut random, limit - skipped, count);
                let input_rows = input(driver, "rows", &rows);
                let input_from = input(driver, "from", &from);
                let to = Output::new::<u32>(driver, "to", count * row_len);
                let request = Rows {
                    from: input_from.address() + skipped * row_len * 4,
                    to: to.address(),
                    rows: input_rows.address(),
                    count,
                    limit: limit - skipped,
                    row_len,
                };
                gather_rows(&**driver, &request).unwrap();
                let expected: Vec<u32> = rows
                    .iter()
                    .flat_map(|row| &from[(*row as usize + skipped) * row_len..][..row_len])
                    .copied()
                    .collect();
                let actual = to.read::<u32>();
                assert!(
                    actual == expected,
                    "rows of {row_len}, {skipped} skipped: first difference at {:?}",
                    actual.iter().zip(&expected).position(|(a, b)| a != b)
                );
                seen.extend(actual);
            }
        }
        seen
    });
}

#[test]
fn scattered_rows_come_back_and_others_stay() {
    on_every_driver("scatter rows", |driver| {
        let mut seen = Vec::new();
        for row_len in ROW_LENS {
            let mut random = Random::new(1000 + row_len as u32);
            let (limit, count) = (11, 5);
            let before: Vec<u32> = (0..limit * row_len).map(|_| random.word()).collect();
            let from: Vec<u32> = (0..count * row_len).map(|_| random.word()).collect();
            let rows = some_rows(&mut random, limit, count);
            let (input_rows, input_from) = (input(driver, "rows", &rows), input(driver, "from", &from));
            let to = Output::holding(driver, "to", &before);
            let (from_at, to_at, rows_at) = (input_from.address(), to.address(), input_rows.address());
            let request = Rows { from: from_at, to: to_at, rows: rows_at, count, limit, row_len };
            scatter_rows(&**driver, &request).unwrap();
            let mut expected = before;
            for (i, row) in rows.iter().enumerate() {
                expected[*row as usize * row_len..][..row_len]
                    .copy_from_slice(&from[i * row_len..][..row_len]);
            }
            let actual = to.read::<u32>();
            assert!(
                actual == expected,
                "rows of {row_len}: first difference at {:?}",
                actual.iter().zip(&expected).position(|(a, b)| a != b)
            );
            seen.extend(actual);
        }
        seen
    });
}

#[test]
fn rows_that_are_not_there_show() {
    on_every_driver("rows beyond the end", |driver| {
        let mut seen = Vec::new();
        for row_len in [3usize, 8] {
            let values: Vec<u32> = (0..2 * row_len as u32).collect();
            let (rows, two) = (input(driver, "rows", &[1u32, 2, u32::MAX]), input(driver, "two", &values));
            let gathered = Output::holding(driver, "gathered", &vec![7u32; 3 * row_len]);
            let (from, rows_at) = (two.address(), rows.address());
            let request = Rows { from, to: gathered.address(), rows: rows_at, count: 3, limit: 2, row_len };
            gather_rows(&**driver, &request).unwrap();
            let actual = gathered.read::<u32>();
            assert_eq!(actual[..row_len], values[row_len..]);
            assert!(actual[row_len..].iter().all(|word| *word == u32::MAX), "{actual:?}");

            let three = input(driver, "three", &vec![9u32; 3 * row_len]);
            let scattered = Output::holding(driver, "scattered", &values);
            let request = Rows { from: three.address(), to: scattered.address(), ..request };
            scatter_rows(&**driver, &request).unwrap();
            let actual = scattered.read::<u32>();
            assert_eq!(actual[..row_len], values[..row_len]);
            assert!(actual[row_len..].iter().all(|word| *word == 9), "{actual:?}");
            seen.extend(actual);
        }
        seen
    });
}
