//! Images of many layers, each on busybox: one as large images are, one deeper than any tool makes them.

use super::layer::Entry;

/// A layer of the size that a `RUN` line makes: 60 files of up to 64 KiB, one of which replaces a lower layer's.
///
/// `number` counts from 1; the layers below it must be there.
pub fn sizable(number: usize) -> Vec<Entry> {
    let mut layer = vec![Entry::folder("srv")];
    let own = format!("srv/layer-{number}");
    layer.push(Entry::folder(&own));
    for folder in 0..6 {
        let folder = format!("{own}/{folder}");
        layer.push(Entry::folder(&folder));
        for file in 0..10 {
            // 64 bytes to 64 KiB, small ones more often, as in real layers.
            let size = 64 << (file + usize::from(file > 6)).min(10);
            layer.push(Entry::file(format!("{folder}/{file}"), content(number * 64 + file, size)));
        }
    }
    layer.push(Entry::file("srv/newest", format!("{number}\n")));
    layer
}

/// Bytes that do not repeat from file to file.
fn content(seed: usize, size: usize) -> Vec<u8> {
    let line = |n: u64| format!("{seed:08x} {n:08x}\n").into_bytes();
    (0..).flat_map(line).take(size).collect()
}

/// A tiny layer: a file of its own, a file of all, and the file of the layer ten below removed.
pub fn tiny(number: usize) -> Vec<Entry> {
    let mut layer = vec![Entry::folder("srv"), Entry::folder("srv/layers")];
    layer.push(Entry::file(format!("srv/layers/{number}"), format!("{number}\n")));
    layer.push(Entry::file("srv/newest", format!("{number}\n")));
    if let Some(gone) = number.checked_sub(10).filter(|gone| *gone > 0) {
        layer.push(Entry::removed("srv/layers", &gone.to_string()));
    }
    layer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_has_its_size_and_differs() {
        assert_eq!(content(1, 100).len(), 100);
        assert_ne!(content(1, 100), content(2, 100));
    }

    #[test]
    fn layers_are_about_a_mebibyte() {
        let size = super::super::layer::archive(&sizable(1)).unwrap().len();
        assert!((500_000..2_000_000).contains(&size), "{size}");
    }
}
