//! The operations of [`Backend`], by kernels and library calls.

use crate::blas::{self, Strides, Types};
use crate::launch::{Argument, Form, double, float, int, long};
use crate::operands::{
    Cuda, Scalar, extent, named, read, read_full, same, strides, summed, write, write_full,
};
use crate::queue::{Buffer, Event, Kind, Queue};
use autodist_compute::backend::{
    AdamWStep, Direction, FusedAttention, NormShape, RotaryShape, SgdStep, TableShape,
};
use autodist_compute::{Backend, DeviceError, GemmShape, Matrix, MatrixMut, Region, RegionMut};
use autodist_spec::Precision;
use autodist_spec::model::{Activation, Norm};

impl Backend for Cuda {
    type Element = f32;
    type Buffer = Buffer;
    type Indices = Buffer;
    type Scalar = Scalar;
    type Event = Event;

    fn synchronise(&self) -> Result<(), DeviceError> {
        self.queue.drain();
        self.queue.device.take_failure()
    }

    fn queue(&self) -> Result<Self, DeviceError> {
        let device = self.queue.device.clone();
        let queue = Queue::new(device).map_err(|error| error.on(&self.gpu().name, "opening a stream"))?;
        Ok(Self { queue, ..self.clone() })
    }

    fn record(&self) -> Event {
        self.queue.record()
    }

    fn wait_for(&self, event: &Event) {
        if let Some(event) = event.handle() {
            // SAFETY: the event is recorded and alive.
            self.queue.run("cuStreamWaitEvent", |stream| unsafe {
                (self.libraries().driver.cuStreamWaitEvent)(stream, event, 0)
            });
        }
    }

    fn seconds_between(&self, from: &Event, to: &Event) -> f64 {
        from.seconds_to(to)
    }

    fn read(&self, scalar: &Scalar) -> f64 {
        let mut value = [f64::NAN];
        self.fetch(&scalar.0, 0, &mut value);
        value[0]
    }

    fn is_mixed(&self) -> bool {
        self.precision.is_mixed()
    }

    fn zeros(&self, len: usize) -> Buffer {
        self.filled(len, self.working())
    }

    fn uninitialised(&self, len: usize) -> Buffer {
        self.queue.allocate(len, self.working())
    }

    fn zeros_full(&self, len: usize) -> Buffer {
        self.filled(len, Kind::F32)
    }

    fn uninitialised_full(&self, len: usize) -> Buffer {
        self.queue.allocate(len, Kind::F32)
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len
    }

    fn upload(&self, from: &[f32]) -> Buffer {
        let buffer = self.uninitialised(from.len());
        self.put(from, &buffer, 0);
        buffer
    }

    fn upload_full(&self, from: &[f32]) -> Buffer {
        let buffer = self.uninitialised_full(from.len());
        self.put(from, &buffer, 0);
        buffer
    }

    fn upload_indices(&self, from: &[u32]) -> Buffer {
        let buffer = self.queue.allocate(from.len(), Kind::F32);
        self.send(from, &buffer, 0);
        buffer
    }

    fn write(&self, from: &[f32], to: RegionMut<'_, Self>) {
        self.put(from, to.buffer, to.offset);
    }

    fn download(&self, from: Region<'_, Self>, to: &mut [f32]) {
        read(from, to.len());
        let at = from.offset * from.buffer.kind.bytes();
        if !from.buffer.is_there() {
            // Old values must not be mistaken for results.
            to.fill(f32::NAN);
            return;
        }
        match from.buffer.kind {
            Kind::F32 => self.fetch(from.buffer, at, to),
            Kind::Bf16 => {
                let mut halves = vec![0_u16; to.len()];
                self.fetch(from.buffer, at, &mut halves);
                for (to, half) in to.iter_mut().zip(halves) {
                    *to = f32::from_bits(u32::from(half) << 16);
                }
            }
        }
    }

    fn copy(&self, len: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>) {
        let (source, target) = (read(from, len), write(&to, len));
        let (held, wanted) = (from.buffer.kind, to.buffer.kind);
        let kernel = match (held, wanted) {
            (Kind::F32, Kind::Bf16) => "convert_f32_to_bf16",
            (Kind::Bf16, Kind::F32) => "convert_bf16_to_f32",
            _ => {
                if from.buffer.is_there() && to.buffer.is_there() && len > 0 {
                    let bytes = len * held.bytes();
                    // SAFETY: both ranges lie in their buffers.
                    self.queue.run("cuMemcpyDtoDAsync", |stream| unsafe {
                        (self.libraries().driver.cuMemcpyDtoDAsync_v2)(target, source, bytes, stream)
                    });
                }
                return;
            }
        };
        let arguments = [long(len), source.into(), target.into()];
        self.launch(kernel, Form::Elements(len), &arguments);
    }

    fn copy_matrices(&self, product: GemmShape, from: Matrix<'_, Self>, to: MatrixMut<'_, Self>) {
        let GemmShape { batch, m, n, .. } = product;
        let kind = same(&[from.region.buffer.kind, to.region.buffer.kind]);
        let reach = |row, column, stride| extent([(batch, stride), (m, row), (n, column)]);
        let source = read(from.region, reach(from.row_stride, from.column_stride, from.batch_stride));
        let target = write(&to.region, reach(to.row_stride, to.column_stride, to.batch_stride));
        let arguments = [
            int(batch),
            int(m),
            int(n),
            source.into(),
            long(from.row_stride),
            long(from.column_stride),
            long(from.batch_stride),
            target.into(),
            long(to.row_stride),
            long(to.column_stride),
            long(to.batch_stride),
        ];
        self.launch(&named("copy_matrices", kind), Form::Elements(batch * m * n), &arguments);
    }

    fn fill_zero(&self, len: usize, to: RegionMut<'_, Self>) {
        write(&to, len);
        self.zero(to.buffer, to.offset, len);
    }

    fn add(&self, len: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>) {
        let kind = same(&[from.buffer.kind, to.buffer.kind]);
        let arguments = [long(len), read(from, len).into(), write(&to, len).into()];
        self.launch(&named("add", kind), Form::Elements(len), &arguments);
    }

    fn scale(&self, len: usize, factor: f64, to: RegionMut<'_, Self>) {
        let arguments = [long(len), float(factor), write(&to, len).into()];
        self.launch(&named("scale", to.buffer.kind), Form::Elements(len), &arguments);
    }

    fn sum_of_squares(&self, len: usize, of: Region<'_, Self>) -> Scalar {
        const BLOCKS: usize = 256;
        let partial = self.partial(BLOCKS);
        let arguments = [long(len), summed(read(of, len), len), partial.pointer.into()];
        self.launch(&named("sum_of_squares", of.buffer.kind), Form::Rows(BLOCKS), &arguments);
        self.sum_partials(BLOCKS, &partial)
    }

    fn matmul(
        &self,
        product: GemmShape,
        alpha: f64,
        a: Matrix<'_, Self>,
        b: Matrix<'_, Self>,
        beta: f64,
        c: MatrixMut<'_, Self>,
    ) {
        let GemmShape { batch, m, n, k } = product;
        if batch * m * n == 0 {
            return;
        }
        assert!(k > 0, "an empty sum is no product");
        let kind = same(&[a.region.buffer.kind, b.region.buffer.kind]);
        let result = c.region.buffer.kind;
        assert!(result == kind || result == Kind::F32, "a product's result is no narrower than its operands");
        let c_strides = Strides { row: c.row_stride, column: c.column_stride, batch: c.batch_stride };
        let Some(gemm) = blas::layout(product, strides(&a), strides(&b), c_strides) else {
            // Neither rows nor columns of an operand are dense, so it is copied to a dense matrix.
            let (a, b) = (self.packed(batch, m, k, a), self.packed(batch, k, n, b));
            let a = Region::start(&a).rows(k).batched(m * k);
            let b = Region::start(&b).rows(n).batched(k * n);
            let packed = blas::layout(product, strides(&a), strides(&b), c_strides);
            assert!(packed.is_some(), "a product's rows or columns are dense and do not overlap");
            return self.matmul(product, alpha, a, b, beta, c);
        };
        let reach =
            |rows, columns, s: Strides| extent([(batch, s.batch), (rows, s.row), (columns, s.column)]);
        let pointers = [
            read(a.region, reach(m, k, strides(&a))),
            read(b.region, reach(k, n, strides(&b))),
            write(&c.region, reach(m, n, c_strides)),
        ];
        let workspace = self.queue.workspace();
        if workspace == 0 || ![a.region.buffer, b.region.buffer, c.region.buffer].iter().all(|b| b.is_there())
        {
            return;
        }
        let types = Types {
            operands_bf16: kind == Kind::Bf16,
            result_bf16: result == Kind::Bf16,
            tf32: self.precision == Precision::Tf32 && kind == Kind::F32,
        };
        let device = &self.queue.device;
        device.enter();
        let factors = (alpha as f32, beta as f32);
        let stream = self.queue.stream.0;
        let library = &device.libraries.cublaslt;
        if let Err(error) = device.blas.multiply(library, gemm, types, factors, pointers, workspace, stream) {
            device.fail("a matrix product", error);
        }
    }

    fn add_row(&self, rows: usize, width: usize, row: Region<'_, Self>, to: RegionMut<'_, Self>) {
        let kind = same(&[row.buffer.kind, to.buffer.kind]);
        let len = rows * width;
        let arguments = [long(len), int(width), read(row, width).into(), write(&to, len).into()];
        self.launch(&named("add_row", kind), Form::Elements(len), &arguments);
    }

    fn sum_rows(&self, rows: usize, width: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>) {
        let arguments =
            [int(rows), int(width), read(from, rows * width).into(), write_full(&to, width).into()];
        self.launch(&named("sum_rows", from.buffer.kind), Form::Columns(width), &arguments);
    }

    fn norm_forward(
        &self,
        norm: NormShape,
        parameters: Region<'_, Self>,
        x: Region<'_, Self>,
        y: RegionMut<'_, Self>,
        statistics: RegionMut<'_, Self>,
    ) {
        let kind = same(&[parameters.buffer.kind, x.buffer.kind, y.buffer.kind]);
        let Norms { forward, sets, .. } = Norms::of(norm.norm);
        let len = norm.rows * norm.width;
        let arguments = [
            int(norm.width),
            float(norm.epsilon),
            read(parameters, sets * norm.width).into(),
            read(x, len).into(),
            write(&y, len).into(),
            write_full(&statistics, sets * norm.rows).into(),
        ];
        self.launch(&named(forward, kind), Form::Rows(norm.rows), &arguments);
    }

    fn norm_backward(
        &self,
        norm: NormShape,
        parameters: Region<'_, Self>,
        gradients: RegionMut<'_, Self>,
        x: Region<'_, Self>,
        statistics: Region<'_, Self>,
        residual: Option<Region<'_, Self>>,
        gradient: RegionMut<'_, Self>,
    ) {
        let kind = same(&[parameters.buffer.kind, x.buffer.kind, gradient.buffer.kind]);
        let Norms { parameters: of_parameters, input, sets, .. } = Norms::of(norm.norm);
        let NormShape { rows, width, .. } = norm;
        let len = rows * width;
        let statistics = read_full(statistics, sets * rows);
        let (x, dy) = (read(x, len), write(&gradient, len));
        // The parameters' gradients come first, because the input's gradient overwrites the output's.
        let arguments = [
            int(rows),
            int(width),
            x.into(),
            statistics.into(),
            dy.into(),
            write_full(&gradients, sets * width).into(),
        ];
        self.launch(&named(of_parameters, kind), Form::Columns(width), &arguments);
        let arguments = [
            int(width),
            read(parameters, sets * width).into(),
            x.into(),
            statistics.into(),
            residual.map_or(Argument::Null, |residual| read(residual, len).into()),
            dy.into(),
        ];
        self.launch(&named(input, kind), Form::Rows(rows), &arguments);
    }

    fn fused_attention(&self) -> Option<&dyn FusedAttention<Self>> {
        Some(self)
    }

    fn heads_at_once(&self, heads: usize) -> usize {
        heads
    }

    fn rotary(&self, rotary: RotaryShape, direction: Direction, rows: RegionMut<'_, Self>) {
        let RotaryShape { positions, repeat, row_width, heads, head_dim, theta } = rotary;
        let pairs = positions * repeat * heads * (head_dim / 2);
        let sign = match direction {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        };
        let arguments = [
            int(positions),
            int(repeat),
            int(row_width),
            int(heads),
            int(head_dim),
            double(theta.ln()),
            float(sign),
            write(&rows, positions * repeat * row_width).into(),
        ];
        self.launch(&named("rotary", rows.buffer.kind), Form::Elements(pairs), &arguments);
    }

    fn causal_softmax(&self, count: usize, seq_len: usize, scores: RegionMut<'_, Self>) {
        let arguments = [int(seq_len), write(&scores, count * seq_len * seq_len).into()];
        self.launch(&named("causal_softmax", scores.buffer.kind), Form::Rows(count * seq_len), &arguments);
    }

    fn causal_softmax_backward(
        &self,
        count: usize,
        seq_len: usize,
        scale: f64,
        probabilities: Region<'_, Self>,
        gradient: RegionMut<'_, Self>,
    ) {
        let kind = same(&[probabilities.buffer.kind, gradient.buffer.kind]);
        let len = count * seq_len * seq_len;
        let arguments =
            [int(seq_len), float(scale), read(probabilities, len).into(), write(&gradient, len).into()];
        self.launch(&named("causal_softmax_backward", kind), Form::Rows(count * seq_len), &arguments);
    }

    fn activation_forward(
        &self,
        activation: Activation,
        rows: usize,
        width: usize,
        inner: Region<'_, Self>,
        outer: RegionMut<'_, Self>,
    ) {
        let kind = same(&[inner.buffer.kind, outer.buffer.kind]);
        let len = rows * width;
        let target = write(&outer, len).into();
        match activation {
            Activation::Gelu => {
                let arguments = [long(len), read(inner, len).into(), target];
                self.launch(&named("gelu_forward", kind), Form::Elements(len), &arguments);
            }
            Activation::SwiGlu => {
                let arguments = [long(len), int(width), read(inner, 2 * len).into(), target];
                self.launch(&named("swiglu_forward", kind), Form::Elements(len), &arguments);
            }
        }
    }

    fn activation_backward(
        &self,
        activation: Activation,
        rows: usize,
        width: usize,
        inner: RegionMut<'_, Self>,
        outer: RegionMut<'_, Self>,
    ) {
        let kind = same(&[inner.buffer.kind, outer.buffer.kind]);
        let len = rows * width;
        let outer = write(&outer, len).into();
        match activation {
            Activation::Gelu => {
                let arguments = [long(len), write(&inner, len).into(), outer];
                self.launch(&named("gelu_backward", kind), Form::Elements(len), &arguments);
            }
            Activation::SwiGlu => {
                let arguments = [long(len), int(width), write(&inner, 2 * len).into(), outer];
                self.launch(&named("swiglu_backward", kind), Form::Elements(len), &arguments);
            }
        }
    }

    fn gather_rows(
        &self,
        table: TableShape,
        indices: &Buffer,
        from: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    ) {
        let kind = same(&[from.buffer.kind, to.buffer.kind]);
        let arguments = [
            int(table.first),
            int(table.rows),
            int(table.width),
            indices.pointer.into(),
            read(from, table.rows * table.width).into(),
            write(&to, indices.len * table.width).into(),
        ];
        self.launch(&named("gather_rows", kind), Form::Rows(indices.len), &arguments);
    }

    fn scatter_add_rows(
        &self,
        table: TableShape,
        indices: &Buffer,
        from: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    ) {
        let arguments = [
            int(table.first),
            int(table.rows),
            int(table.width),
            indices.pointer.into(),
            read(from, indices.len * table.width).into(),
            write_full(&to, table.rows * table.width).into(),
        ];
        self.launch(&named("scatter_add_rows", from.buffer.kind), Form::Rows(indices.len), &arguments);
    }

    fn add_positions(
        &self,
        positions: usize,
        repeat: usize,
        width: usize,
        table: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    ) {
        let kind = same(&[table.buffer.kind, to.buffer.kind]);
        let len = positions * repeat * width;
        let arguments = [
            long(len),
            int(repeat),
            int(width),
            read(table, positions * width).into(),
            write(&to, len).into(),
        ];
        self.launch(&named("add_positions", kind), Form::Elements(len), &arguments);
    }

    fn sum_positions(
        &self,
        positions: usize,
        repeat: usize,
        width: usize,
        from: Region<'_, Self>,
        table: RegionMut<'_, Self>,
    ) {
        let arguments = [
            int(positions),
            int(repeat),
            int(width),
            read(from, positions * repeat * width).into(),
            write_full(&table, positions * width).into(),
        ];
        self.launch(&named("sum_positions", from.buffer.kind), Form::Elements(positions * width), &arguments);
    }

    fn row_max(&self, rows: usize, width: usize, x: Region<'_, Self>, max: RegionMut<'_, Self>) {
        let arguments = [int(width), read(x, rows * width).into(), write_full(&max, rows).into()];
        self.launch(&named("row_max", x.buffer.kind), Form::Rows(rows), &arguments);
    }

    fn exponentials(
        &self,
        classes: TableShape,
        targets: &Buffer,
        max: Region<'_, Self>,
        logits: RegionMut<'_, Self>,
        sums: RegionMut<'_, Self>,
    ) {
        let rows = targets.len;
        let arguments = [
            int(rows),
            int(classes.first),
            int(classes.rows),
            targets.pointer.into(),
            read_full(max, rows).into(),
            write(&logits, rows * classes.rows).into(),
            write_full(&sums, 2 * rows).into(),
        ];
        self.launch(&named("exponentials", logits.buffer.kind), Form::Rows(rows), &arguments);
    }

    fn cross_entropy(&self, rows: usize, sums: Region<'_, Self>) -> Scalar {
        let result = self.scalar();
        let sums = summed(read_full(sums, 2 * rows), rows);
        let arguments = [int(rows), sums, result.0.pointer.into()];
        self.launch("cross_entropy", Form::Rows(1), &arguments);
        result
    }

    fn cross_entropy_backward(
        &self,
        classes: TableShape,
        targets: &Buffer,
        sums: Region<'_, Self>,
        scale: f64,
        exponentials: RegionMut<'_, Self>,
    ) {
        let rows = targets.len;
        let arguments = [
            int(rows),
            int(classes.first),
            int(classes.rows),
            targets.pointer.into(),
            read_full(sums, rows).into(),
            float(scale),
            write(&exponentials, rows * classes.rows).into(),
        ];
        let kernel = named("cross_entropy_backward", exponentials.buffer.kind);
        self.launch(&kernel, Form::Rows(rows), &arguments);
    }

    fn adamw_step(
        &self,
        len: usize,
        step: AdamWStep,
        gradient: Region<'_, Self>,
        parameter: RegionMut<'_, Self>,
        first_moment: RegionMut<'_, Self>,
        second_moment: RegionMut<'_, Self>,
        working: Option<RegionMut<'_, Self>>,
    ) {
        let mut arguments = vec![
            long(len),
            float(step.gradient_scale),
            float(step.beta1),
            float(step.beta2),
            float(step.decay),
            float(step.rate),
            float(step.root),
            float(step.epsilon),
            read_full(gradient, len).into(),
            write_full(&parameter, len).into(),
            write_full(&first_moment, len).into(),
            write_full(&second_moment, len).into(),
        ];
        let kernel = if working.is_some() { "adamw_with_copy" } else { "adamw" };
        arguments.extend(working.map(|copy| written_copy(&copy, len)));
        self.launch(kernel, Form::Elements(len), &arguments);
    }

    fn sgd_momentum_step(
        &self,
        len: usize,
        step: SgdStep,
        gradient: Region<'_, Self>,
        parameter: RegionMut<'_, Self>,
        momentum: RegionMut<'_, Self>,
        working: Option<RegionMut<'_, Self>>,
    ) {
        let mut arguments = vec![
            long(len),
            float(step.gradient_scale),
            float(step.momentum),
            float(step.weight_decay),
            float(step.rate),
            read_full(gradient, len).into(),
            write_full(&parameter, len).into(),
            write_full(&momentum, len).into(),
        ];
        let kernel = if working.is_some() { "sgd_momentum_with_copy" } else { "sgd_momentum" };
        arguments.extend(working.map(|copy| written_copy(&copy, len)));
        self.launch(kernel, Form::Elements(len), &arguments);
    }
}

fn written_copy(copy: &RegionMut<'_, Cuda>, len: usize) -> Argument {
    assert_eq!(copy.buffer.kind, Kind::Bf16, "an optimizer's copy is in working precision");
    write(copy, len).into()
}

/// Names of a norm's kernels, and how many sets of parameters and of statistics it has.
struct Norms {
    forward: &'static str,
    parameters: &'static str,
    input: &'static str,
    sets: usize,
}

impl Norms {
    fn of(norm: Norm) -> Self {
        match norm {
            Norm::LayerNorm => Self {
                forward: "layer_norm_forward",
                parameters: "layer_norm_backward_parameters",
                input: "layer_norm_backward_input",
                sets: 2,
            },
            Norm::RmsNorm => Self {
                forward: "rms_norm_forward",
                parameters: "rms_norm_backward_parameters",
                input: "rms_norm_backward_input",
                sets: 1,
            },
        }
    }
}
