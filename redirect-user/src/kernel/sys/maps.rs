//! Maps as bytes, where a typed map does not fit: keys by the thousand, sockets as values, tables of another
//! version.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use aya_obj::generated::{bpf_cmd, bpf_map_info, bpf_map_type};

use super::info::{object_info, text};
use super::{Result, attr, bpf, obj_get, owned, raw};

/// All keys of a map, some thousand per call. `K` and `V` are the map's key and value types.
///
/// # Errors
/// `BPF_MAP_LOOKUP_BATCH` (Linux 5.6 for hash tables and arrays, 5.13 for tries).
pub fn map_keys<K: aya::Pod, V: aya::Pod>(map: impl AsFd) -> Result<Vec<K>> {
    Ok(map_entries::<K, V>(map)?.into_iter().map(|(key, _)| key).collect())
}

/// All entries of a hash table, an array or a trie.
///
/// # Errors
/// As [`map_keys`].
pub fn map_entries<K: aya::Pod, V: aya::Pod>(map: impl AsFd) -> Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    for_all(&map, size_of::<K>(), size_of::<V>(), |key, value| {
        // SAFETY: the slices have the sizes of the types, and any bytes are a valid `Pod`.
        found.push(unsafe {
            (key.as_ptr().cast::<K>().read_unaligned(), value.as_ptr().cast::<V>().read_unaligned())
        });
    })?;
    Ok(found)
}

/// Shows every entry as bytes; the kernel copies some thousand at once.
fn for_all(
    map: &impl AsFd,
    key_bytes: usize,
    value_bytes: usize,
    mut show: impl FnMut(&[u8], &[u8]),
) -> Result<()> {
    // More than a bucket of the map will ever hold, or the kernel answers ENOSPC.
    const AT_ONCE: usize = 4096;
    const CALL: &str = "BPF_MAP_LOOKUP_BATCH";
    let (mut keys, mut values) = (vec![0_u8; AT_ONCE * key_bytes], vec![0_u8; AT_ONCE * value_bytes]);
    // A hash table's position is the number of a bucket, that of the others is a key.
    let mut position = vec![0_u8; key_bytes.max(size_of::<u32>())];
    let mut next = position.clone();
    let mut started = false;
    loop {
        let mut attr = attr();
        attr.batch.in_batch = if started { position.as_ptr() as u64 } else { 0 };
        attr.batch.out_batch = next.as_mut_ptr() as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = AT_ONCE as u32;
        attr.batch.map_fd = raw(map);
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, CALL, &mut attr);
        let end = matches!(&result, Err(error) if error.errno() == Some(libc::ENOENT));
        if !end {
            result?;
        }
        // SAFETY: `batch` is the member of the union that this command uses, and its count is a plain
        // integer.
        let count = unsafe { attr.batch.count as usize }.min(AT_ONCE);
        let entries = keys.chunks_exact(key_bytes).zip(values.chunks_exact(value_bytes));
        entries.take(count).for_each(|(key, value)| show(key, value));
        if end {
            return Ok(());
        }
        std::mem::swap(&mut position, &mut next);
        started = true;
    }
}

/// Removes a key from a map; fine when it is not there.
///
/// # Errors
/// `BPF_MAP_DELETE_ELEM`.
pub fn map_delete<K: aya::Pod>(map: impl AsFd, key: &K) -> Result<()> {
    delete(&map, std::ptr::from_ref(key) as u64)
}

fn delete(map: &impl AsFd, key: u64) -> Result<()> {
    let mut attr = attr();
    attr.__bindgen_anon_2.map_fd = raw(map);
    attr.__bindgen_anon_2.key = key;
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, "BPF_MAP_DELETE_ELEM", &mut attr) {
        Err(error) if error.errno() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Puts a value under a key, in the place of what was there. For a map of sockets the value is the socket's
/// descriptor as u32 or u64; for socket storage the key is the socket's descriptor as i32.
///
/// # Errors
/// `BPF_MAP_UPDATE_ELEM`: E2BIG when the map is full.
pub fn map_update<K: aya::Pod, V: aya::Pod>(map: impl AsFd, key: &K, value: &V) -> Result<()> {
    let mut attr = attr();
    attr.__bindgen_anon_2.map_fd = raw(&map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, "BPF_MAP_UPDATE_ELEM", &mut attr).map(drop)
}

/// The id of a map.
///
/// # Errors
/// `BPF_OBJ_GET_INFO_BY_FD`.
pub fn map_id(map: impl AsFd) -> Result<u32> {
    Ok(map_info(&map)?.id)
}

/// The name of the map with this id, at most 15 bytes.
///
/// # Errors
/// `BPF_MAP_GET_FD_BY_ID`: ENOENT when there is no such map any more.
pub fn map_name(id: u32) -> Result<String> {
    let mut attr = attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
    let map = bpf(bpf_cmd::BPF_MAP_GET_FD_BY_ID, "BPF_MAP_GET_FD_BY_ID", &mut attr).map(owned)?;
    Ok(text(&map_info(&map)?.name))
}

fn map_info(map: &impl AsFd) -> Result<bpf_map_info> {
    // SAFETY: integers and arrays of integers.
    let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
    object_info(map, &mut info)?;
    Ok(info)
}

/// The sizes of a map's keys and values in bytes.
///
/// # Errors
/// `BPF_OBJ_GET_INFO_BY_FD`.
pub fn map_sizes(map: impl AsFd) -> Result<(usize, usize)> {
    let info = map_info(&map)?;
    Ok((info.key_size as usize, info.value_size as usize))
}

/// A map of which only this is known: where in its keys the cookie of a pod's network namespace stands. Every
/// hash table and trie of ours has it first, in all versions.
pub struct RawMap {
    fd: OwnedFd,
    key_bytes: usize,
    /// Where the kernel copies many entries in one call.
    value_bytes: Option<usize>,
    cookie_at: usize,
    limit: u32,
}

impl RawMap {
    /// Opens a pinned map; `None` when its keys hold no pod.
    ///
    /// # Errors
    /// `BPF_OBJ_GET`, `BPF_OBJ_GET_INFO_BY_FD`.
    pub fn open(path: &Path) -> Result<Option<RawMap>> {
        let fd = obj_get(path)?;
        let info = map_info(&fd)?;
        // The key of a trie begins with the length of its prefix.
        let (cookie_at, many) = match info.type_ {
            kind if kind == bpf_map_type::BPF_MAP_TYPE_LPM_TRIE as u32 => (4, true),
            kind if kind == bpf_map_type::BPF_MAP_TYPE_HASH as u32
                || kind == bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32 =>
            {
                (0, true)
            }
            kind if kind == bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH as u32
                || kind == bpf_map_type::BPF_MAP_TYPE_SOCKHASH as u32 =>
            {
                (0, false)
            }
            // An array, socket storage, a ring buffer.
            _ => return Ok(None),
        };
        let key_bytes = info.key_size as usize;
        let value_bytes = many.then_some(info.value_size as usize);
        let limit = info.max_entries;
        Ok((key_bytes >= cookie_at + 8).then_some(RawMap { fd, key_bytes, value_bytes, cookie_at, limit }))
    }

    /// The pod that a key belongs to.
    #[must_use]
    pub fn cookie(&self, key: &[u8]) -> u64 {
        let bytes = key[self.cookie_at..self.cookie_at + 8].try_into().unwrap_or_default();
        u64::from_ne_bytes(bytes)
    }

    /// How many entries it may have.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How many entries each pod has.
    ///
    /// # Errors
    /// As [`RawMap::keys`].
    pub fn entries_by_pod(&self) -> Result<HashMap<u64, usize>> {
        let mut counts = HashMap::new();
        let mut count = |key: &[u8]| *counts.entry(self.cookie(key)).or_default() += 1;
        match self.value_bytes {
            Some(value_bytes) => for_all(&self.fd, self.key_bytes, value_bytes, |key, _| count(key))?,
            None => self.keys()?.iter().for_each(|key| count(key)),
        }
        Ok(counts)
    }

    /// All keys.
    ///
    /// # Errors
    /// `BPF_MAP_LOOKUP_BATCH`, `BPF_MAP_GET_NEXT_KEY`.
    pub fn keys(&self) -> Result<Vec<Vec<u8>>> {
        const CALL: &str = "BPF_MAP_GET_NEXT_KEY";
        let mut keys: Vec<Vec<u8>> = Vec::new();
        if let Some(value_bytes) = self.value_bytes {
            for_all(&self.fd, self.key_bytes, value_bytes, |key, _| keys.push(key.to_vec()))?;
            return Ok(keys);
        }
        loop {
            let mut next = vec![0_u8; self.key_bytes];
            let mut attr = attr();
            attr.__bindgen_anon_2.map_fd = self.fd.as_raw_fd() as u32;
            attr.__bindgen_anon_2.key = keys.last().map_or(0, |key| key.as_ptr() as u64);
            attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
            match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, CALL, &mut attr) {
                Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(keys),
                other => other?,
            };
            keys.push(next);
        }
    }

    /// Removes a key; fine when it is gone.
    ///
    /// # Errors
    /// `BPF_MAP_DELETE_ELEM`.
    pub fn remove(&self, key: &[u8]) -> Result<()> {
        delete(&self.fd, key.as_ptr() as u64)
    }
}
