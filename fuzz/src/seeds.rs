//! The corpus: small sound messages of every codec, and quantized arrays.

use std::path::Path;

use lowbit::message::codec::Codec;
use lowbit::message::envelope::{DTYPES, Data, Dtype, Entry, encode};
use lowbit::message::quantized::{Parts, Quantized, fill};
use lowbit::message::{Noise, entropy_step};
use lowbit::pack::packed_len;
use lowbit::stream::random_bits;
use lowbit::view::{Element, View};

use crate::target::key;

/// Numbers in [-1, 1), always the same.
fn numbers(n: usize) -> Vec<f32> {
    let mut words = vec![0; n];
    random_bits(key(), 0, &mut words).expect("there are so many words");
    words.iter().map(|word| *word as i32 as f32 / 2_147_483_648.0).collect()
}

/// The parameters of EDEN.
fn eden(bits: f64, scale: u8, rounds: u8, coded: bool) -> Vec<u8> {
    let step = if coded { entropy_step(bits) } else { 0.0 };
    [&bits.to_le_bytes()[..], &[scale, rounds, u8::from(coded)], &step.to_le_bytes()].concat()
}

fn interval(front: [u8; 2], low: f32, high: f32) -> Vec<u8> {
    [&front[..], &low.to_le_bytes(), &high.to_le_bytes()].concat()
}

fn packed(rounding: u8, block_size: u32, name: &str) -> Vec<u8> {
    [&[rounding][..], &block_size.to_le_bytes(), name.as_bytes()].concat()
}

/// Name, number and parameters of every codec, in several forms.
fn codecs() -> Vec<(&'static str, u8, Vec<u8>)> {
    vec![
        ("float32", 1, vec![]),
        ("packed-int4", 2, packed(0, 0, "int4")),
        ("packed-radix4-blocks", 2, packed(1, 7, "radix4")),
        ("packed-mxfp4", 2, packed(0, 0, "mxfp4")),
        ("packed-nvfp4", 2, packed(1, 0, "nvfp4")),
        ("packed-table", 2, packed(0, 9, "table(-1,0,0.5)")),
        ("packed-ternary", 2, packed(0, 16, "uint4")),
        ("dither-1", 3, interval([1, 0], 0.0, 0.0)),
        ("dither-5-given", 3, interval([5, 1], -1.0, 1.0)),
        ("onebit-randomized", 4, interval([1, 255], -1.0, 1.0)),
        ("onebit-dither", 4, interval([2, 3], -1.0, 1.0)),
        ("onebit-optimal", 4, interval([5, 255], -1.0, 1.0)),
        ("sign-l1", 5, vec![0]),
        ("sign-l2", 5, vec![1]),
        ("terngrad", 6, vec![]),
        ("qsgd-1", 7, vec![1, 0]),
        ("qsgd-300", 7, 300_u16.to_le_bytes().to_vec()),
        ("drive", 8, eden(1.0, 0, 2, false)),
        ("eden-2.5", 8, eden(2.5, 1, 1, false)),
        ("eden-0.3", 8, eden(0.3, 2, 2, false)),
        ("eden-8", 8, eden(8.0, 0, 3, false)),
        ("entropy-1", 8, eden(1.0, 0, 2, true)),
        ("entropy-0.05", 8, eden(0.05, 0, 2, true)),
        ("entropy-6", 8, eden(6.0, 1, 2, true)),
        ("drive-plus", 9, vec![2]),
        ("quicfl-1", 10, vec![1, 2]),
        ("quicfl-4", 10, vec![4, 1]),
        ("summable-4", 11, vec![4, 2]),
    ]
}

fn dtype(name: &str) -> Dtype {
    Dtype::named(name).expect("a dtype of the wire")
}

fn noise(sender: u64) -> Noise {
    Noise { key: Some(key()), sender }
}

/// A message of one array.
fn single(codec: &Codec, shape: &[usize], numbers: &[f32]) -> Vec<u8> {
    let entry = Entry { name: String::new(), shape: shape.to_vec(), dtype: dtype("float32"), exact: false };
    let mut strides = vec![4_isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    assert_eq!(shape.iter().product::<usize>(), numbers.len(), "as many numbers as the shape says");
    // SAFETY: the strides are those of the slice in C order.
    let view = unsafe { View::new(numbers.as_ptr().cast(), Element::F32, false, shape, &strides) };
    encode(codec, &[(entry, Data::Coded(view))], false, noise(3)).expect("a sound message")
}

/// A message of arrays by name; those given as bytes travel exactly.
fn mapping(codec: &Codec, coded: &[&[f32]], exact: &[(Dtype, &[u8])]) -> Vec<u8> {
    let mut arrays = Vec::new();
    for (index, (dtype, bytes)) in exact.iter().enumerate() {
        let shape = vec![bytes.len() / dtype.size];
        arrays.push((Entry { name: format!("e{index}"), shape, dtype: *dtype, exact: true }, Data::Exact(bytes)));
    }
    for (index, numbers) in coded.iter().enumerate() {
        let entry =
            Entry { name: format!("c{index}"), shape: vec![numbers.len()], dtype: dtype("bfloat16"), exact: false };
        arrays.push((entry, Data::Coded(View::from_slice(numbers))));
    }
    encode(codec, &arrays, true, noise(1 << 40)).expect("a sound message")
}

/// A quantized array: the bytes need only be possible codes and scales.
fn quantized(record: &Quantized, scales: usize, bits: u32) -> Vec<u8> {
    let floats: Vec<u8> = (1..=scales).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let few_bits = record.format.scaling.is_some();
    let scale = if few_bits { vec![0x38; scales] } else { floats };
    let tensor_scale = if record.has_tensor_scale() { 1.5_f32.to_le_bytes().to_vec() } else { vec![] };
    let codes = vec![0; packed_len(record.shape.iter().product(), bits)];
    let offset = if record.has_offset { scale.clone() } else { vec![] };
    let parts = Parts { tensor_scale: &tensor_scale, scale: &scale, offset: &offset, packed: &codes };
    let (head, length) = record.head(parts).expect("a sound array");
    let mut memory = vec![0; length];
    fill(&head, parts, &mut memory);
    memory
}

fn format(name: &str) -> std::sync::Arc<lowbit::formats::Format> {
    lowbit::formats::Format::named(name).expect("a format")
}

/// The files of a target's corpus.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let payload = target == "payload";
    let mut undefined = numbers(200);
    (undefined[3], undefined[150]) = (f32::NAN, f32::INFINITY);
    for (name, id, parameters) in codecs() {
        let codec = Codec::new(id, &parameters).expect("sound parameters");
        if !payload {
            files.push((name.into(), single(&codec, &[3, 1, 2], &numbers(6))));
            continue;
        }
        files.push((format!("{name}-one"), single(&codec, if id == 2 { &[1] } else { &[] }, &numbers(1))));
        // More than one block of a rotation, the last one padded; not a whole number of bytes of codes.
        files.push((format!("{name}-many"), single(&codec, &[3, 131], &numbers(393))));
        if !name.contains("given") && id != 4 {
            files.push((format!("{name}-zeros"), single(&codec, &[200], &[0.0; 200])));
        }
        files.push((format!("{name}-not-finite"), single(&codec, &[2, 100], &undefined)));
        files.push((
            format!("{name}-mapping"),
            mapping(&codec, &[&numbers(5), &[], &numbers(140)], &[(dtype("int16"), &[1, 2, 3, 4])]),
        ));
    }
    let codec = |id, parameters: &[u8]| Codec::new(id, parameters).expect("sound parameters");
    let bytes: Vec<u8> = (0..16).map(|i| i % 2).collect();
    let exact: Vec<(Dtype, &[u8])> = DTYPES.iter().map(|dtype| (*dtype, &bytes[..])).collect();
    files.push(("empty-array".into(), single(&codec(8, &eden(1.0, 0, 2, false)), &[4, 0, 2], &[])));
    files.push(("empty-mapping".into(), mapping(&codec(1, &[]), &[], &[])));
    files.push(("every-dtype".into(), mapping(&codec(11, &[4, 2]), &[&numbers(3)], &exact)));
    files.push(("sixty-four-dimensions".into(), single(&codec(2, &packed(0, 3, "int4")), &[1; 64], &numbers(1))));
    // Many arrays of one number: whatever memory each takes beside its bytes adds up.
    let ones = numbers(60);
    let ones: Vec<&[f32]> = ones.chunks(1).collect();
    for (name, parameters) in [("eden", eden(0.05, 0, 2, false)), ("entropy", eden(0.05, 0, 2, true))] {
        files.push((format!("many-arrays-{name}"), mapping(&codec(8, &parameters), &ones, &[])));
    }
    if payload {
        // Blocks of the longest length, of which an entropy coder needs few bytes.
        let mut sparse = vec![0.0; 70_000];
        sparse[69_000] = 1.0;
        files.push(("entropy-long".into(), single(&codec(8, &eden(0.05, 0, 2, true)), &[70_000], &sparse)));
        files.push(("quicfl-outliers".into(), single(&codec(10, &[1, 2]), &[3000], &numbers(3000))));
    }
    let record = Quantized {
        format: format("int4"),
        shape: vec![4, 6],
        axis: None,
        block_size: None,
        key_id: None,
        scale_shape: vec![1, 1],
        has_offset: false,
    };
    let dithered = Quantized { key_id: Some(5), has_offset: true, ..record.clone() };
    let blocks = Quantized { axis: Some(0), block_size: Some(3), scale_shape: vec![2, 6], ..record.clone() };
    let deep = Quantized {
        axis: Some(1),
        block_size: Some(2),
        shape: vec![2, 3, 4],
        scale_shape: vec![1, 2, 1],
        ..record.clone()
    };
    let rows = Quantized { axis: Some(1), scale_shape: vec![1, 6], format: format("radix4"), ..record.clone() };
    let beyond = Quantized {
        axis: Some(0),
        block_size: Some(1 << 63),
        shape: vec![4, 2, 3],
        scale_shape: vec![1, 1, 3],
        ..record.clone()
    };
    let block = |name: &str, size, shape: &[usize], scale_shape: &[usize]| Quantized {
        format: format(name),
        axis: Some(shape.len() - 1),
        block_size: Some(size),
        shape: shape.to_vec(),
        scale_shape: scale_shape.to_vec(),
        ..record.clone()
    };
    let (mxfp4, nvfp4) = (block("mxfp4", 32, &[2, 40], &[2, 2]), block("nvfp4", 16, &[33], &[3]));
    let composed = block("block(float(3,2,bias=5,fn),e4m3,7)", 7, &[15], &[3]);
    let made = Quantized { format: format("fixed(12,6,symmetric)"), ..record.clone() };
    let table = Quantized { format: format("table(-1,-0.25,0,0.25,1)"), ..record.clone() };
    let records = [
        ("-mxfp4", &mxfp4, 4),
        ("-nvfp4", &nvfp4, 3),
        ("-composed", &composed, 3),
        ("-made", &made, 1),
        ("-table", &table, 1),
        ("", &record, 1),
        ("-dithered", &dithered, 1),
        ("-blocks", &blocks, 12),
        ("-deep", &deep, 2),
        ("-rows", &rows, 6),
        ("-beyond", &beyond, 3),
    ];
    for (name, record, scales) in records {
        files.push((format!("quantized{name}"), quantized(record, scales, record.format.bits)));
    }
    files
}

/// Writes the files of a target's corpus.
pub fn write(target: &str, place: &Path) -> std::io::Result<usize> {
    std::fs::create_dir_all(place)?;
    let files = corpus(target);
    for (name, bytes) in &files {
        std::fs::write(place.join(name), bytes)?;
    }
    Ok(files.len())
}
