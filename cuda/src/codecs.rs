//! The arithmetic of gradient codecs on a GPU (`kernels/codecs.cu`): numbers stay in its memory; only encoded
//! bytes and low-rank factors are copied to the host.

use crate::api::DevicePointer;
use crate::launch::{Argument, Form as Grid, float, int, long};
use crate::operands::Cuda;
use crate::queue::{Buffer, Kind};
use autodist_codecs::{Arithmetic, Factor, Form, Levels, LowRank, Part, PartMut, Scale};
use autodist_compute::{Backend, Region, RegionMut};

/// The kernels' `TILE`.
const TILE: usize = 2048;
/// Size of a `Selection`, in 32-bit words.
const SELECTION: usize = 2050;
/// Shift and bits of a magnitude's digits, from the highest.
const DIGITS: [(usize, usize); 3] = [(20, 11), (10, 10), (0, 10)];
/// Blocks of kernels that work with any number of blocks.
const BLOCKS: usize = 1024;
/// Matrix rows per block in the kernel for left factors.
const FACTOR_ROWS: usize = 32;

/// Bytes in a device's memory.
pub struct Encoded {
    memory: Buffer,
    len: usize,
}

/// A kernel argument for a part; for an empty part it is not null, which would mean a missing operand.
fn operand(part: &Part<'_, Cuda>) -> Argument {
    let buffer = part.values();
    assert_eq!(buffer.kind, Kind::F32, "gradients are in full precision");
    if part.is_empty() { Argument::Null } else { buffer.at(part.range().start).into() }
}

fn target(part: &PartMut<'_, Cuda>) -> Argument {
    operand(&part.read())
}

fn region<'a>(part: &Part<'a, Cuda>) -> Region<'a, Cuda> {
    Region::new(part.values(), part.range().start)
}

fn region_mut(part: PartMut<'_, Cuda>) -> RegionMut<'_, Cuda> {
    let start = part.range().start;
    RegionMut::new(part.into_values(), start)
}

/// # Panics
/// If two operands differ in length.
fn equally_long(from: usize, to: usize) -> usize {
    assert_eq!(from, to, "operands of one length");
    to
}

/// The number of elements encoded in `bytes` bytes.
fn numbers(form: Form, bytes: usize) -> usize {
    match form {
        Form::Fp16 | Form::Bf16 => bytes / 2,
        Form::Int8 { block } => {
            let (whole, rest) = (bytes / (block + 4), bytes % (block + 4));
            whole * block + rest.saturating_sub(4)
        }
    }
}

fn sides(shape: LowRank) -> [Argument; 3] {
    [int(shape.rows), int(shape.columns), int(shape.rank)]
}

/// # Panics
/// If the size of an operand does not match its shape.
fn check(shape: LowRank, whole: usize, left: usize, right: usize) {
    let LowRank { rows, columns, rank } = shape;
    assert_eq!((whole, left, right), (rows * columns, rows * rank, columns * rank), "{shape:?}");
}

impl Cuda {
    fn bytes(&self, len: usize) -> Encoded {
        Encoded { memory: self.queue.allocate(len.div_ceil(4), Kind::F32), len }
    }

    /// One launch with a thread for each number.
    fn elementwise(&self, kernel: &str, len: usize, arguments: &[Argument]) {
        let arguments = [&[long(len)], arguments].concat();
        self.launch(kernel, Grid::Elements(len), &arguments);
    }

    /// Pointer, norms and bytes before the levels, and the common scale.
    fn level_operands(
        levels: Levels,
        bytes: &Encoded,
        len: usize,
    ) -> (Argument, DevicePointer, Argument, usize) {
        let start = bytes.memory.pointer;
        let head = (4 * levels.norms(len)) as DevicePointer;
        let coded = if start == 0 { 0 } else { start + head };
        match levels.scale {
            Scale::Norms { bucket } => (start.into(), coded, float(0.0), bucket),
            // The bucket is not used.
            Scale::Common(scale) => (Argument::Null, coded, Argument::Float(scale), 1),
        }
    }
}

impl Arithmetic for Cuda {
    type Values = Buffer;
    type Owned = Buffer;
    type Bytes = Encoded;
    type Sum = <Self as Backend>::Scalar;

    fn zeros(&self, len: usize) -> Buffer {
        self.zeros_full(len)
    }

    fn len(values: &Buffer) -> usize {
        values.len
    }

    fn on_host<R>(&self, at: PartMut<'_, Self>, work: impl FnOnce(&mut [f32]) -> R) -> R {
        let mut values = vec![0.0; at.len()];
        self.download(region(&at.read()), &mut values);
        let result = work(&mut values);
        self.write(&values, region_mut(at));
        result
    }

    fn read(&self, sum: &Self::Sum) -> f64 {
        Backend::read(self, sum)
    }

    fn fetch(&self, bytes: Vec<Encoded>) -> Vec<Vec<u8>> {
        // Zeros if the allocation failed: the other members wait for the announced number of bytes.
        let mut fetched: Vec<Vec<u8>> = bytes.iter().map(|part| vec![0; part.len]).collect();
        for (part, to) in bytes.iter().zip(&mut fetched) {
            // SAFETY: the vector is not touched before the queue has been drained, below.
            unsafe { self.fetch_later(&part.memory, 0, to) };
        }
        self.queue.drain();
        fetched
    }

    fn bring(&self, bytes: Vec<u8>) -> Encoded {
        let brought = self.bytes(bytes.len());
        self.send(&bytes, &brought.memory, 0);
        brought
    }

    fn fill_zero(&self, to: PartMut<'_, Self>) {
        let len = to.len();
        Backend::fill_zero(self, len, region_mut(to));
    }

    fn copy(&self, from: Part<'_, Self>, to: PartMut<'_, Self>) {
        let len = equally_long(from.len(), to.len());
        Backend::copy(self, len, region(&from), region_mut(to));
    }

    fn add(&self, from: Part<'_, Self>, mut to: PartMut<'_, Self>) -> Self::Sum {
        let len = equally_long(from.len(), to.len());
        Backend::add(self, len, region(&from), region_mut(to.again()));
        self.square_sum(to.read())
    }

    fn add_with_momentum(
        &self,
        decay: f32,
        gradient: Part<'_, Self>,
        velocity: PartMut<'_, Self>,
        to: PartMut<'_, Self>,
    ) -> Self::Sum {
        let len = equally_long(equally_long(gradient.len(), velocity.len()), to.len());
        let arguments = [Argument::Float(decay), operand(&gradient), target(&velocity), target(&to)];
        self.elementwise("codec_momentum", len, &arguments);
        self.square_sum(to.read())
    }

    fn mix(&self, factor: f32, from: Part<'_, Self>, own: f32, to: PartMut<'_, Self>) {
        let len = equally_long(from.len(), to.len());
        let arguments = [Argument::Float(factor), operand(&from), Argument::Float(own), target(&to)];
        self.elementwise("codec_mix", len, &arguments);
    }

    fn agree(&self, decay: f32, gradient: PartMut<'_, Self>, momentum: PartMut<'_, Self>) {
        let len = equally_long(gradient.len(), momentum.len());
        self.elementwise("codec_agree", len, &[Argument::Float(decay), target(&gradient), target(&momentum)]);
    }

    fn subtract(&self, from: Part<'_, Self>, to: PartMut<'_, Self>) {
        let len = equally_long(from.len(), to.len());
        self.elementwise("codec_subtract", len, &[operand(&from), target(&to)]);
    }

    fn divide(&self, divisor: f32, to: PartMut<'_, Self>) {
        self.elementwise("codec_divide", to.len(), &[Argument::Float(divisor), target(&to)]);
    }

    fn clamp(&self, limit: f32, to: PartMut<'_, Self>) {
        self.elementwise("codec_clamp", to.len(), &[Argument::Float(limit), target(&to)]);
    }

    fn square_sum(&self, of: Part<'_, Self>) -> Self::Sum {
        let tiles = of.len().div_ceil(TILE);
        let partial = self.partial(tiles);
        let arguments = [long(of.len()), operand(&of), partial.pointer.into()];
        self.launch("codec_square_sums", Grid::Rows(tiles), &arguments);
        self.sum_partials(tiles, &partial)
    }

    fn largest_magnitude(&self, of: Part<'_, Self>) -> f32 {
        let blocks = of.len().div_ceil(TILE).clamp(1, BLOCKS);
        let partial = self.queue.allocate(blocks, Kind::F32);
        let result = self.queue.allocate(1, Kind::F32);
        let arguments = [long(of.len()), operand(&of), partial.pointer.into()];
        self.launch("codec_largest", Grid::Rows(blocks), &arguments);
        let arguments = [long(blocks), partial.pointer.into(), result.pointer.into()];
        self.launch("codec_largest", Grid::Rows(1), &arguments);
        let mut largest = [f32::NAN];
        self.download(Region::start(&result), &mut largest);
        largest[0]
    }

    fn encode(&self, form: Form, of: Part<'_, Self>) -> Encoded {
        let (len, from) = (of.len(), operand(&of));
        let bytes = self.bytes(form.bytes(len));
        let to = bytes.memory.pointer.into();
        match form {
            Form::Fp16 => self.elementwise("codec_encode_fp16", len, &[from, to]),
            Form::Bf16 => self.elementwise("convert_f32_to_bf16", len, &[from, to]),
            Form::Int8 { block } => {
                let arguments = [long(len), int(block), from, to];
                self.launch("codec_encode_int8", Grid::Rows(len.div_ceil(block)), &arguments);
            }
        }
        bytes
    }

    fn add_encoded(&self, form: Form, bytes: &Encoded, to: PartMut<'_, Self>) {
        let len = to.len().min(numbers(form, bytes.len));
        let (from, to) = (bytes.memory.pointer.into(), target(&to));
        match form {
            Form::Fp16 => self.elementwise("codec_add_fp16", len, &[from, to]),
            Form::Bf16 => self.elementwise("codec_add_bf16", len, &[from, to]),
            Form::Int8 { block } => self.elementwise("codec_add_int8", len, &[int(block), from, to]),
        }
    }

    fn encode_signs(&self, scale: f32, of: Part<'_, Self>) -> Encoded {
        let len = of.len();
        let bytes = self.bytes(4 + len.div_ceil(8));
        let arguments = [long(len), Argument::Float(scale), operand(&of), bytes.memory.pointer.into()];
        self.launch("codec_encode_signs", Grid::Elements(len.div_ceil(8).max(1)), &arguments);
        bytes
    }

    fn add_signs(&self, bytes: &Encoded, factor: f32, to: PartMut<'_, Self>) {
        let len = to.len().min(8 * bytes.len.saturating_sub(4));
        let arguments = [Argument::Float(factor), bytes.memory.pointer.into(), target(&to)];
        self.elementwise("codec_add_signs", len, &arguments);
    }

    fn subtract_signs(&self, scale: f32, to: PartMut<'_, Self>) {
        self.elementwise("codec_subtract_signs", to.len(), &[Argument::Float(scale), target(&to)]);
    }

    fn take_largest(
        &self,
        count: usize,
        values: PartMut<'_, Self>,
        velocity: Option<PartMut<'_, Self>>,
    ) -> (Encoded, Self::Sum) {
        let bytes = self.bytes(8 * count);
        if count == 0 {
            return (bytes, self.square_sum(values.part(0..0)));
        }
        let (len, tiles) = (values.len(), values.len().div_ceil(TILE));
        let numbers = target(&values);
        let selection = self.queue.allocate(SELECTION, Kind::F32);
        let counts = self.queue.allocate(2 * tiles, Kind::F32);
        let (selection, counts) = (selection.pointer.into(), counts.pointer.into());
        self.launch("codec_select", Grid::Rows(1), &[int(count), selection]);
        for (shift, bits) in DIGITS {
            let arguments = [long(len), int(shift), int(bits), numbers, selection];
            self.launch("codec_count_digits", Grid::Rows(tiles.min(BLOCKS)), &arguments);
            self.launch("codec_pick_digit", Grid::Rows(1), &[int(bits), selection]);
        }
        self.launch("codec_count_chosen", Grid::Rows(tiles), &[long(len), numbers, selection, counts]);
        self.launch("codec_count_before", Grid::Rows(1), &[int(tiles), counts]);
        let velocity = velocity.map_or(Argument::Null, |velocity| target(&velocity));
        let entries = bytes.memory.pointer.into();
        let arguments = [long(len), selection, counts, numbers, velocity, entries];
        self.launch("codec_take_chosen", Grid::Rows(tiles), &arguments);
        let blocks = count.div_ceil(TILE).min(BLOCKS);
        let partial = self.partial(blocks);
        let arguments = [long(count), entries, partial.pointer.into()];
        self.launch("codec_entry_squares", Grid::Rows(blocks), &arguments);
        (bytes, self.sum_partials(blocks, &partial))
    }

    fn add_entries(&self, bytes: &Encoded, to: PartMut<'_, Self>) {
        let arguments = [bytes.memory.pointer.into(), long(to.len()), target(&to)];
        self.elementwise("codec_add_entries", bytes.len / 8, &arguments);
    }

    fn encode_levels(&self, levels: Levels, state: u64, of: Part<'_, Self>) -> (Encoded, Self::Sum) {
        let len = of.len();
        let bytes = self.bytes(levels.bytes(len));
        let (norms, to, common, bucket) = Self::level_operands(levels, &bytes, len);
        if let Scale::Norms { bucket } = levels.scale {
            let arguments = [long(len), int(bucket), operand(&of), norms];
            self.launch("codec_norms", Grid::Rows(levels.norms(len)), &arguments);
        }
        let threads = Grid::Elements(len.div_ceil(8));
        let blocks = len.div_ceil(TILE);
        let partial = self.partial(blocks);
        let arguments = [
            long(len),
            int(levels.levels as usize),
            int(levels.width()),
            int(bucket),
            norms,
            common,
            Argument::Long(state.cast_signed()),
            operand(&of),
            to.into(),
            partial.pointer.into(),
        ];
        self.launch("codec_encode_levels", threads, &arguments);
        (bytes, self.sum_partials(blocks, &partial))
    }

    fn add_levels(&self, levels: Levels, bytes: &Encoded, to: PartMut<'_, Self>) {
        let len = to.len();
        if bytes.len < levels.bytes(len) {
            // The bytes of another member are incomplete, so there is nothing to decode.
            return;
        }
        let (norms, from, common, bucket) = Self::level_operands(levels, bytes, len);
        let arguments = [
            long(len),
            int(levels.levels as usize),
            int(levels.width()),
            int(bucket),
            norms,
            common,
            from.into(),
            target(&to),
        ];
        self.launch("codec_add_levels", Grid::Elements(len.div_ceil(8)), &arguments);
    }

    fn orthogonalise(&self, factors: &[Factor], values: &mut Buffer) {
        let ends = factors.iter().map(|factor| factor.offset + factor.rows * factor.rank);
        assert!(ends.max().unwrap_or(0) <= values.len, "factors lie in their buffer");
        let table: Vec<u32> = factors
            .iter()
            .flat_map(|factor| [factor.offset, factor.rows, factor.rank])
            .map(|number| u32::try_from(number).expect("a bucket's factors have fewer than 2^32 numbers"))
            .collect();
        let table = self.upload_indices(&table);
        let arguments = [table.pointer.into(), values.pointer.into()];
        self.launch("codec_orthogonalise", Grid::Rows(factors.len()), &arguments);
    }

    fn add_and_multiply(
        &self,
        shape: LowRank,
        gradient: Part<'_, Self>,
        whole: PartMut<'_, Self>,
        right: Part<'_, Self>,
        left: PartMut<'_, Self>,
    ) -> Self::Sum {
        check(shape, equally_long(gradient.len(), whole.len()), left.len(), right.len());
        let blocks = shape.rows.div_ceil(FACTOR_ROWS);
        let partial = self.partial(blocks);
        let [rows, columns, rank] = sides(shape);
        let arguments = [
            rows,
            columns,
            rank,
            operand(&gradient),
            target(&whole),
            operand(&right),
            target(&left),
            partial.pointer.into(),
        ];
        self.launch("codec_add_and_multiply", Grid::Rows(blocks), &arguments);
        self.sum_partials(blocks, &partial)
    }

    fn add_and_multiply_transposed(
        &self,
        shape: LowRank,
        gradient: Part<'_, Self>,
        mut whole: PartMut<'_, Self>,
        left: Part<'_, Self>,
        right: PartMut<'_, Self>,
    ) -> Self::Sum {
        let squares = Arithmetic::add(self, gradient, whole.again());
        self.multiply_transposed(shape, whole.read(), left, right);
        squares
    }

    fn multiply_transposed(
        &self,
        shape: LowRank,
        whole: Part<'_, Self>,
        left: Part<'_, Self>,
        right: PartMut<'_, Self>,
    ) {
        check(shape, whole.len(), left.len(), right.len());
        let arguments = [&sides(shape)[..], &[operand(&whole), operand(&left), target(&right)]].concat();
        self.launch("codec_multiply_transposed", Grid::Columns(shape.columns), &arguments);
    }

    fn subtract_expanded(
        &self,
        shape: LowRank,
        left: Part<'_, Self>,
        right: Part<'_, Self>,
        whole: PartMut<'_, Self>,
        gradient: Option<(PartMut<'_, Self>, f32)>,
    ) -> Self::Sum {
        check(shape, whole.len(), left.len(), right.len());
        let (gradient, factor) = match &gradient {
            Some((gradient, factor)) => {
                equally_long(gradient.len(), whole.len());
                (target(gradient), *factor)
            }
            None => (Argument::Null, 1.0),
        };
        let blocks = whole.len().div_ceil(TILE);
        let partial = self.partial(blocks);
        let arguments = [
            long(whole.len()),
            int(shape.columns),
            int(shape.rank),
            operand(&left),
            operand(&right),
            target(&whole),
            Argument::Float(factor),
            gradient,
            partial.pointer.into(),
        ];
        self.launch("codec_subtract_expanded", Grid::Rows(blocks), &arguments);
        self.sum_partials(blocks, &partial)
    }

    fn expand(
        &self,
        shape: LowRank,
        left: Part<'_, Self>,
        right: Part<'_, Self>,
        factor: f32,
        whole: PartMut<'_, Self>,
    ) {
        check(shape, whole.len(), left.len(), right.len());
        let arguments = [
            int(shape.columns),
            int(shape.rank),
            operand(&left),
            operand(&right),
            Argument::Float(factor),
            target(&whole),
        ];
        self.elementwise("codec_expand", whole.len(), &arguments);
    }
}
