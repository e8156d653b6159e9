//! Last-layer gradients and explicit rows: `kernels/prune/`. Checked by `tests/kernel_last_layer.rs`.

use super::{Cost, F32, require, run};
use crate::engine::Result;
use crate::engine::cuda::driver::{Address, Driver};

/// Features that a block of the sum takes; the width is a multiple of it.
const WARP_FEATURES: u32 = 128;
/// Classes that a block of the sum, of the products and of the step takes.
const TILE_CLASSES: u32 = 10;
/// Samples that a block of the products and of the step takes.
const TILE_SAMPLES: u32 = 64;
/// Samples that a block of the inner products takes.
const INNER_SAMPLES: u32 = 32;
/// Blocks of the sum at which its samples are cut no further: four a multiprocessor of a big GPU.
const SUM_BLOCKS: u32 = 528;
/// Samples that a part of the sum has at least, and of which it is a multiple.
const PART_LEAST: u32 = 64;
const PART_UNIT: u32 = 32;
/// Row length from which the wide kernel has blocks enough for a big GPU.
const WIDE_ROWS: u32 = 16_384;

/// Gradients in factored form.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Gradients {
    /// f32, len x classes, a term each.
    pub logit_gradient: [Address; 2],
    /// f32, len x width on 16 bytes, a term each.
    pub features: [Address; 2],
    /// Samples.
    pub len: u32,
    /// 1 or 2.
    pub terms: u32,
    pub classes: u32,
    /// Features of a sample, a multiple of 128.
    pub width: u32,
}

impl Gradients {
    /// Bytes of all factors.
    fn bytes(&self) -> usize {
        self.terms as usize * (elements(self.len, self.classes) + elements(self.len, self.width)) * F32
    }

    /// Operations on every gradient with a vector of its shape: a multiply-add with each element of each term.
    fn flops(&self) -> usize {
        2 * self.terms as usize * self.len as usize * elements(self.classes, self.width + 1)
    }

    fn check(&self, kernel: &str) -> Result<()> {
        require((1..=2).contains(&self.terms), kernel, "terms: 1 or 2", self.terms)?;
        let features = &self.features[..self.terms as usize];
        features.iter().try_for_each(|features| check_features(kernel, *features, self.width))
    }
}

fn check_features(kernel: &str, features: Address, width: u32) -> Result<()> {
    let fits = width > 0 && width.is_multiple_of(WARP_FEATURES);
    require(fits, kernel, "features: a multiple of 128", width)?;
    let beside = (features.0 % 16) as u32;
    require(beside == 0, kernel, "features: rows that start on 16 bytes", beside)
}

/// Bytes of an f64.
const F64: usize = 8;

/// Elements of a matrix, and of the vector of a gradient: classes x (width + 1).
fn elements(rows: u32, columns: u32) -> usize {
    rows as usize * columns as usize
}

/// Whether a place is fit for accesses of 16 bytes.
fn on_16_bytes(address: Address) -> bool {
    address.0.is_multiple_of(16)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct InnerProductsParams {
    gradients: Gradients,
    products: Address,
    sample: u32,
    padding: u32,
}

fn inner_products(
    driver: &dyn Driver,
    names: [&str; 2],
    gradients: &Gradients,
    sample: u32,
    products: Address,
    pairs: u32,
) -> Result<()> {
    let name = names[usize::from(gradients.terms == 2)];
    gradients.check(name)?;
    let params = InnerProductsParams { gradients: *gradients, products, sample, padding: 0 };
    // A pair of terms is the product of two inner products: of logit gradients, and of features and a one.
    let Gradients { len, classes, width, .. } = *gradients;
    let flops = 2 * pairs as usize * elements(len, classes + width + 1);
    let cost = Cost::new(flops, gradients.bytes() + len as usize * F64);
    run(driver, name, [len.div_ceil(INNER_SAMPLES), 1, 1], &params, cost)
}

/// `column[i] = <g_i, g_sample>`, f64.
pub fn gradient_column(
    driver: &dyn Driver,
    gradients: &Gradients,
    sample: u32,
    column: Address,
) -> Result<()> {
    let names = ["gradient_column_one_term", "gradient_column_two_terms"];
    require(sample < gradients.len, names[0], "sample: one of the gradients", sample)?;
    inner_products(driver, names, gradients, sample, column, gradients.terms.pow(2))
}

/// `squares[i] = <g_i, g_i>`, f64.
pub fn gradient_squares(driver: &dyn Driver, gradients: &Gradients, squares: Address) -> Result<()> {
    let names = ["gradient_squares_one_term", "gradient_squares_two_terms"];
    let pairs = gradients.terms * (gradients.terms + 1) / 2;
    inner_products(driver, names, gradients, 0, squares, pairs)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct GradientSumParams {
    gradients: Gradients,
    weights: Address,
    partials: Address,
    part_len: u32,
    padding: u32,
}

/// Samples of a part of the sum, by shape alone.
fn part_len(len: u32, classes: u32, width: u32) -> u32 {
    let tiles = width / WARP_FEATURES * classes.div_ceil(TILE_CLASSES);
    let parts = (SUM_BLOCKS / tiles.max(1)).min(len / PART_LEAST).max(1);
    len.div_ceil(parts).next_multiple_of(PART_UNIT)
}

/// f64 elements that [`gradient_sum`] needs for its parts; none where one part is all.
pub fn gradient_sum_workspace(len: u32, classes: u32, width: u32) -> usize {
    match len.div_ceil(part_len(len.max(1), classes, width)) {
        0 | 1 => 0,
        parts => parts as usize * classes as usize * (width as usize + 1),
    }
}

/// `sum = sum_i w_i g_i`, f64, classes x (width + 1); `weights` are f64, null for ones.
pub fn gradient_sum(
    driver: &dyn Driver,
    gradients: &Gradients,
    weights: Address,
    workspace: Address,
    sum: Address,
) -> Result<()> {
    let name = "gradient_sum";
    gradients.check(name)?;
    let Gradients { len, classes, width, .. } = *gradients;
    let vector = classes as usize * (width as usize + 1);
    if len == 0 {
        return driver.fill(sum, 0, vector * size_of::<f64>());
    }
    let part_len = part_len(len, classes, width);
    let parts = len.div_ceil(part_len);
    let partials = if parts == 1 { sum } else { workspace };
    let params = GradientSumParams { gradients: *gradients, weights, partials, part_len, padding: 0 };
    let weighed = if weights == Address::NULL { 0 } else { len as usize };
    let bytes = gradients.bytes() + (weighed + parts as usize * vector) * F64;
    let grid = [width / WARP_FEATURES, classes.div_ceil(TILE_CLASSES), parts];
    run(driver, name, grid, &params, Cost::new(gradients.flops(), bytes))?;
    if parts == 1 {
        return Ok(());
    }
    let (factors, from) = (Address::NULL, Address::NULL);
    let rows = CombineRowsParams { rows: partials, factors, from, to: sum, count: parts, len: vector as u32 };
    let summed = parts as usize * vector;
    let cost = Cost::new(summed - vector, (summed + vector) * F64);
    run(driver, "sum_rows", [rows.len.div_ceil(32), 1, 1], &rows, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct GradientProductsParams {
    gradients: Gradients,
    vector: Address,
    products: Address,
}

/// `products[i] = <g_i, vector>`; `vector` is f64, classes x (width + 1).
pub fn gradient_products(
    driver: &dyn Driver,
    gradients: &Gradients,
    vector: Address,
    products: Address,
) -> Result<()> {
    let name = "gradient_products";
    gradients.check(name)?;
    let params = GradientProductsParams { gradients: *gradients, vector, products };
    let Gradients { len, classes, width, .. } = *gradients;
    let bytes = gradients.bytes() + (elements(classes, width + 1) + len as usize) * F64;
    let cost = Cost::new(gradients.flops(), bytes);
    run(driver, name, [len.div_ceil(TILE_SAMPLES), 1, 1], &params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct StepLogitsParams {
    /// f32, len x width on 16 bytes.
    pub features: Address,
    /// f64, classes x (width + 1).
    pub vector: Address,
    /// f32, len x classes.
    pub logits: Address,
    /// f32, len x classes; may be `logits`.
    pub moved: Address,
    pub rate: f64,
    pub len: u32,
    pub classes: u32,
    /// A multiple of 128.
    pub width: u32,
    pub padding: u32,
}

/// `moved = logits - rate (V h + b)`, `vector = [V, b]`.
pub fn step_logits(driver: &dyn Driver, params: &StepLogitsParams) -> Result<()> {
    let name = "step_logits";
    check_features(name, params.features, params.width)?;
    let grid = [params.len.div_ceil(TILE_SAMPLES), params.classes.div_ceil(TILE_CLASSES), 1];
    let (vector, logits) = (elements(params.classes, params.width + 1), elements(params.len, params.classes));
    let flops = 2 * params.len as usize * vector + 2 * logits;
    let bytes = (elements(params.len, params.width) + 2 * logits) * F32 + vector * F64;
    run(driver, name, grid, params, Cost::new(flops, bytes))
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct CombineRowsParams {
    /// f64, count x len.
    pub rows: Address,
    /// f64, count.
    pub factors: Address,
    /// f64, len.
    pub from: Address,
    /// f64, len; may be `from`.
    pub to: Address,
    pub count: u32,
    pub len: u32,
}

/// `to = from - sum_s factors[s] row_s`.
pub fn subtract_rows(driver: &dyn Driver, params: &CombineRowsParams) -> Result<()> {
    let len = params.len;
    let (rows, columns) = (params.count as usize, len as usize);
    let cost = Cost::new(2 * rows * columns, (rows * columns + rows + 2 * columns) * F64);
    let aligned = [params.rows, params.from, params.to].into_iter().all(on_16_bytes);
    if aligned && len.is_multiple_of(2) && len >= WIDE_ROWS {
        run(driver, "subtract_rows_wide", [len.div_ceil(64), 1, 1], params, cost)
    } else {
        run(driver, "subtract_rows", [len.div_ceil(32), 1, 1], params, cost)
    }
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowProductsParams {
    /// f64, rows x len.
    pub rows: Address,
    /// f64, len.
    pub vector: Address,
    /// f64, rows.
    pub products: Address,
    pub len: u32,
    pub padding: u32,
}

/// `products[i] = <row_i, vector>` of `rows` rows.
pub fn row_products(driver: &dyn Driver, rows: u32, params: &RowProductsParams) -> Result<()> {
    let wide = params.len.is_multiple_of(2) && on_16_bytes(params.rows) && on_16_bytes(params.vector);
    let name = if wide { "row_products_wide" } else { "row_products" };
    let all = elements(rows, params.len);
    let cost = Cost::new(2 * all, (all + params.len as usize + rows as usize) * F64);
    run(driver, name, [rows, 1, 1], params, cost)
}

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct RowNormsParams {
    /// f32, rows x len.
    pub values: Address,
    /// f32, rows.
    pub norms: Address,
    pub rows: u32,
    pub len: u32,
}

/// The Euclidean norm of each row.
pub fn row_norms(driver: &dyn Driver, params: &RowNormsParams) -> Result<()> {
    let wide = params.len.is_multiple_of(4) && on_16_bytes(params.values);
    let name = if wide { "row_norms_wide" } else { "row_norms" };
    let all = elements(params.rows, params.len);
    let cost = Cost::new(2 * all + params.rows as usize, (all + params.rows as usize) * F32);
    run(driver, name, [params.rows.div_ceil(8), 1, 1], params, cost)
}
