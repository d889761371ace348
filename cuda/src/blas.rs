//! GEMMs by cuBLASLt.
//!
//! cuBLASLt computes `D = alpha op(A) op(B) + beta C` on column-major matrices with leading dimensions; our
//! operands are strided, usually row-major. [`layout`] converts between the two.

use crate::api::{CublasLt, DevicePointer, Handle, HeuristicResult};
use crate::device::{Shared, lock};
use crate::error::CudaError;
use autodist_compute::GemmShape;
use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayoutAttribute_t as LayoutAttribute,
    cudaDataType_t as DataType,
};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Mutex;

/// Distances between neighbours of a strided matrix, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Strides {
    pub row: usize,
    pub column: usize,
    pub batch: usize,
}

impl Strides {
    fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// A column-major operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GemmOperand {
    /// Whether the GEMM uses it transposed.
    pub transposed: bool,
    /// Rows and columns as stored in memory.
    pub rows: usize,
    pub columns: usize,
    /// The leading dimension: the distance between columns.
    pub leading: usize,
    pub batch_stride: usize,
}

/// A call of cuBLASLt: a GEMM of column-major `m × k` and `k × n` matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gemm {
    /// Whether our right operand is cuBLASLt's left operand.
    pub swapped: bool,
    pub left: GemmOperand,
    pub right: GemmOperand,
    pub result: GemmOperand,
    pub batch: usize,
}

/// The call that computes `c = a b` for strided `a[m, k]`, `b[k, n]`, `c[m, n]`. Either the rows or the
/// columns of each must be dense; `None` otherwise.
///
/// Read column by column, a row-major `c` is its own transpose, and `cᵀ = bᵀ aᵀ`: the operands are swapped,
/// and an operand is transposed if and only if it is not row-major.
pub fn layout(product: GemmShape, a: Strides, b: Strides, c: Strides) -> Option<Gemm> {
    let GemmShape { m, n, .. } = product;
    if c.column == 1 || n == 1 {
        return row_major(product, a, b, c);
    }
    // `c` is column-major: the transposed problem has a row-major result.
    let turned = GemmShape { m: n, n: m, ..product };
    let gemm = row_major(turned, b.transposed(), a.transposed(), c.transposed())?;
    (c.row == 1 || m == 1).then_some(Gemm { swapped: false, ..gemm })
}

fn row_major(product: GemmShape, a: Strides, b: Strides, c: Strides) -> Option<Gemm> {
    let GemmShape { batch, m, n, k } = product;
    // As column-major matrices: bᵀ is n × k, aᵀ is k × m, cᵀ is n × m.
    let left = operand(n, k, b.transposed())?;
    let right = operand(k, m, a.transposed())?;
    let leading = if m > 1 { c.row } else { c.row.max(n) };
    let result = GemmOperand { transposed: false, rows: n, columns: m, leading, batch_stride: c.batch };
    (leading >= n).then_some(Gemm { swapped: true, left, right, result, batch })
}

/// A `rows × columns` matrix with these strides, as a GEMM operand.
fn operand(rows: usize, columns: usize, strides: Strides) -> Option<GemmOperand> {
    // Dense columns: not transposed. Dense rows: the transpose of the stored matrix. The stride along a side
    // of length 1 has no effect.
    let as_it_is = strides.row == 1 || rows == 1;
    let turned = strides.column == 1 || columns == 1;
    let held = |transposed, (rows, columns): (usize, usize), stride: usize| {
        let leading = if columns > 1 { stride } else { stride.max(rows) };
        let held = GemmOperand { transposed, rows, columns, leading, batch_stride: strides.batch };
        (leading >= rows).then_some(held)
    };
    let plain = || as_it_is.then(|| held(false, (rows, columns), strides.column)).flatten();
    let transpose = || turned.then(|| held(true, (columns, rows), strides.row)).flatten();
    plain().or_else(transpose)
}

/// Types of a GEMM's operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types {
    pub operands_bf16: bool,
    pub result_bf16: bool,
    pub tf32: bool,
}

/// The key of the cache of algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    gemm: Gemm,
    types: Types,
    /// Alignment of the addresses of left, right and result, bytes.
    alignment: [u32; 3],
}

/// Descriptors and the algorithm, for all calls with the same key.
#[derive(Clone, Copy)]
struct Prepared {
    description: Shared,
    left: Shared,
    right: Shared,
    result: Shared,
    algorithm: cublasLtMatmulAlgo_t,
}

pub(crate) struct Blas {
    handle: Shared,
    prepared: Mutex<BTreeMap<Key, Prepared>>,
}

/// Scratch memory of a GEMM; cuBLAS recommends 32 MiB for Hopper.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;
/// A larger alignment does not change the choice of algorithm.
const LARGEST_ALIGNMENT: u64 = 256;

impl Blas {
    pub fn new(library: &CublasLt) -> Result<Self, CudaError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is valid.
        library.check("cublasLtCreate", unsafe { (library.cublasLtCreate)(&raw mut handle) })?;
        Ok(Self { handle: Shared(handle), prepared: Mutex::default() })
    }

    /// Queues one GEMM. Pointers are those of our `a`, `b`, `c`.
    pub fn multiply(
        &self,
        library: &CublasLt,
        gemm: Gemm,
        types: Types,
        (alpha, beta): (f32, f32),
        [a, b, c]: [DevicePointer; 3],
        workspace: DevicePointer,
        stream: Handle,
    ) -> Result<(), CudaError> {
        let (left, right) = if gemm.swapped { (b, a) } else { (a, b) };
        // By default, cuBLASLt assumes that addresses are multiples of 256 bytes, which ours may not be.
        let alignment = [left, right, c]
            .map(|pointer| (pointer | LARGEST_ALIGNMENT).trailing_zeros())
            .map(|zeros| 1 << zeros);
        let key = Key { gemm, types, alignment };
        let prepared = {
            let mut known = lock(&self.prepared);
            match known.get(&key) {
                Some(prepared) => *prepared,
                None => *known.entry(key).or_insert(self.prepare(library, key)?),
            }
        };
        let address = |pointer: DevicePointer| pointer as *mut c_void;
        // SAFETY: the descriptors live as long as the device, the caller guarantees valid operands, and the
        // two factors are read before the call returns.
        let code = unsafe {
            (library.cublasLtMatmul)(
                self.handle.0,
                prepared.description.0,
                (&raw const alpha).cast(),
                address(left),
                prepared.left.0,
                address(right),
                prepared.right.0,
                (&raw const beta).cast(),
                address(c),
                prepared.result.0,
                address(c),
                prepared.result.0,
                &raw const prepared.algorithm,
                address(workspace),
                WORKSPACE_BYTES,
                stream,
            )
        };
        library.check("cublasLtMatmul", code)
    }

    fn prepare(&self, library: &CublasLt, key: Key) -> Result<Prepared, CudaError> {
        let Key { gemm, types, alignment } = key;
        let data = |bf16: bool| if bf16 { DataType::CUDA_R_16BF } else { DataType::CUDA_R_32F } as c_int;
        let compute =
            if types.tf32 { Compute::CUBLAS_COMPUTE_32F_FAST_TF32 } else { Compute::CUBLAS_COMPUTE_32F };
        let mut description = ptr::null_mut();
        // SAFETY: the pointer is valid.
        library.check("cublasLtMatmulDescCreate", unsafe {
            (library.cublasLtMatmulDescCreate)(
                &raw mut description,
                compute as c_int,
                DataType::CUDA_R_32F as c_int,
            )
        })?;
        for (attribute, operand) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, gemm.left),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, gemm.right),
        ] {
            // cublasOperation_t: not transposed 0, transposed 1.
            let operation = i32::from(operand.transposed);
            // SAFETY: the attribute is a 32-bit number.
            library.check("cublasLtMatmulDescSetAttribute", unsafe {
                let value = (&raw const operation).cast();
                (library.cublasLtMatmulDescSetAttribute)(description, attribute as c_int, value, 4)
            })?;
        }
        let left = matrix(library, gemm.left, data(types.operands_bf16), gemm.batch)?;
        let right = matrix(library, gemm.right, data(types.operands_bf16), gemm.batch)?;
        let result = matrix(library, gemm.result, data(types.result_bf16), gemm.batch)?;
        let mut preference = ptr::null_mut();
        // SAFETY: the pointer is valid.
        library.check("cublasLtMatmulPreferenceCreate", unsafe {
            (library.cublasLtMatmulPreferenceCreate)(&raw mut preference)
        })?;
        let workspace = WORKSPACE_BYTES as u64;
        let set = |attribute: Preference, value: *const c_void, size: usize| {
            // SAFETY: the value has the given size, which is the attribute's documented size.
            library.check("cublasLtMatmulPreferenceSetAttribute", unsafe {
                (library.cublasLtMatmulPreferenceSetAttribute)(preference, attribute as c_int, value, size)
            })
        };
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8)?;
        for (attribute, bytes) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment[0]),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment[1]),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment[2]),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment[2]),
        ] {
            set(attribute, ptr::from_ref::<u32>(bytes).cast(), 4)?;
        }
        // SAFETY: the library expects an all-zero result struct to fill.
        let mut found: HeuristicResult = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: one result is requested, and there is room for one.
        let code = unsafe {
            (library.cublasLtMatmulAlgoGetHeuristic)(
                self.handle.0,
                description,
                left.0,
                right.0,
                result.0,
                result.0,
                preference,
                1,
                &raw mut found,
                &raw mut count,
            )
        };
        // SAFETY: the preference is not used again.
        unsafe { (library.cublasLtMatmulPreferenceDestroy)(preference) };
        library.check("cublasLtMatmulAlgoGetHeuristic", code)?;
        if count == 0 || found.status != 0 {
            let text = format!("cuBLASLt has no algorithm for {gemm:?} with {types:?}");
            return Err(CudaError::Library { operation: "cublasLtMatmulAlgoGetHeuristic", text });
        }
        Ok(Prepared { description: Shared(description), left, right, result, algorithm: found.algorithm })
    }
}

fn matrix(library: &CublasLt, operand: GemmOperand, data: c_int, batch: usize) -> Result<Shared, CudaError> {
    let mut layout = ptr::null_mut();
    let GemmOperand { rows, columns, leading, batch_stride, .. } = operand;
    // SAFETY: the pointer is valid.
    library.check("cublasLtMatrixLayoutCreate", unsafe {
        let (rows, columns) = (rows as u64, columns as u64);
        (library.cublasLtMatrixLayoutCreate)(&raw mut layout, data, rows, columns, leading as i64)
    })?;
    if batch > 1 {
        let (count, stride) = (batch as i32, batch_stride as i64);
        // SAFETY: the attributes are a 32-bit and a 64-bit number.
        unsafe {
            let attribute = LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT as c_int;
            let code =
                (library.cublasLtMatrixLayoutSetAttribute)(layout, attribute, (&raw const count).cast(), 4);
            library.check("cublasLtMatrixLayoutSetAttribute", code)?;
            let attribute = LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET as c_int;
            let code =
                (library.cublasLtMatrixLayoutSetAttribute)(layout, attribute, (&raw const stride).cast(), 8);
            library.check("cublasLtMatrixLayoutSetAttribute", code)?;
        }
    }
    Ok(Shared(layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
    }

    /// Computes the documented result of cuBLASLt, and checks its requirements on operands.
    fn carry_out(gemm: &Gemm, a: &[f64], b: &[f64], c: &mut [f64]) {
        let (left, right) = if gemm.swapped { (b, a) } else { (a, b) };
        let enters = |o: GemmOperand| if o.transposed { (o.columns, o.rows) } else { (o.rows, o.columns) };
        let ((m, k), (inner, n)) = (enters(gemm.left), enters(gemm.right));
        assert!(inner == k && (gemm.result.rows, gemm.result.columns) == (m, n), "{gemm:?}");
        assert!([gemm.left, gemm.right, gemm.result].iter().all(|o| o.leading >= o.rows), "{gemm:?}");
        let place = |o: GemmOperand, matrix: usize, row: usize, column: usize| {
            let (row, column) = if o.transposed { (column, row) } else { (row, column) };
            matrix * o.batch_stride + column * o.leading + row
        };
        for matrix in 0..gemm.batch {
            for (row, column) in places(m, n) {
                let term =
                    |i| left[place(gemm.left, matrix, row, i)] * right[place(gemm.right, matrix, i, column)];
                c[place(gemm.result, matrix, row, column)] = (0..k).map(term).sum();
            }
        }
    }

    /// Checks that the call of `layout` computes the result defined by the strides, and does not change
    /// elements in gaps.
    fn check(product: GemmShape, [a, b, c]: [Strides; 3]) {
        let GemmShape { batch, m, n, k } = product;
        let at = |s: Strides, matrix, row, column| matrix * s.batch + row * s.row + column * s.column;
        let len = |strides, rows, columns| at(strides, batch - 1, rows - 1, columns - 1) + 1;
        let number = |i: usize| (i * 37 % 19) as f64 - 9.0;
        let left: Vec<f64> = (0..len(a, m, k)).map(number).collect();
        let right: Vec<f64> = (7..7 + len(b, k, n)).map(number).collect();
        let mut expected = vec![f64::MAX; len(c, m, n)];
        let mut found = expected.clone();
        for matrix in 0..batch {
            for (row, column) in places(m, n) {
                let term = |i| left[at(a, matrix, row, i)] * right[at(b, matrix, i, column)];
                expected[at(c, matrix, row, column)] = (0..k).map(term).sum();
            }
        }
        carry_out(&layout(product, a, b, c).unwrap(), &left, &right, &mut found);
        assert_eq!(found, expected, "{product:?} {a:?} {b:?} {c:?}");
    }

    /// Row-major and column-major strides, dense and with gaps.
    fn orders(rows: usize, columns: usize) -> [Strides; 4] {
        let strides = |row, column, batch| Strides { row, column, batch };
        [
            strides(columns, 1, rows * columns),
            strides(columns + 2, 1, rows * (columns + 2) + 1),
            strides(1, rows, rows * columns),
            strides(1, rows + 3, columns * (rows + 3) + 2),
        ]
    }

    #[test]
    fn the_call_computes_the_product_for_all_shapes_orders_gaps_and_batches() {
        const SIZES: [usize; 4] = [1, 2, 3, 5];
        // An operand may be one matrix for the whole batch.
        let operands = |rows, columns| orders(rows, columns).map(|s| [s, Strides { batch: 0, ..s }]).concat();
        for index in 0..SIZES.len().pow(3) {
            let [m, n, k] = [16, 4, 1].map(|unit| SIZES[index / unit % 4]);
            let right = operands(k, n);
            for (a, b) in operands(m, k).iter().flat_map(|a| right.iter().map(|b| (*a, *b))) {
                for (batch, c) in [1, 3].into_iter().flat_map(|batch| orders(m, n).map(|c| (batch, c))) {
                    check(GemmShape { batch, m, n, k }, [a, b, c]);
                }
            }
        }
    }

    #[test]
    fn a_matrix_with_gaps_both_ways_has_no_call() {
        let product = GemmShape { batch: 1, m: 2, n: 3, k: 5 };
        let [a, b, c] = [orders(2, 5)[0], orders(5, 3)[0], orders(2, 3)[0]];
        let gaps = Strides { row: 20, column: 2, batch: 0 };
        assert_eq!(layout(product, gaps, b, c), None);
        assert_eq!(layout(product, a, gaps, c), None);
        assert_eq!(layout(product, a, b, gaps), None);
        // A broadcast row (stride 0) is not supported either.
        assert_eq!(layout(product, Strides { row: 0, column: 1, batch: 0 }, b, c), None);
    }

    #[test]
    fn sides_of_length_one_may_have_any_stride() {
        let strides = |row, column| Strides { row, column, batch: 99 };
        let (gaps, row, column) = (strides(20, 2), strides(0, 1), strides(1, 0));
        for (m, n, k, strides) in [
            (1, 1, 1, [gaps; 3]),
            (1, 1, 4, [row, column, gaps]),
            (1, 4, 1, [gaps, row, row]),
            (4, 1, 1, [column, gaps, column]),
        ] {
            check(GemmShape { batch: 3, m, n, k }, strides);
        }
    }
}
