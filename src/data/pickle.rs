//! Reads what Python pickled, as far as data files go: numbers, texts, bytes, lists, tuples, dicts and NumPy arrays of bytes.
//!
//! A pickle is a program for a stack machine that may call anything; this one calls nothing. A global is a name, a call is a
//! value with that name, and what is not understood is an error. Values refer to the input and to each other, so a pickle takes
//! no more memory than its operations do, which are counted. Protocols 0 to 1 are not read: nothing writes them any more.
//! The format: Python's `pickletools` module.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

/// Operations of a pickle; the largest data file, CIFAR-100's training images, has about 250,000.
const MAX_OPERATIONS: usize = 1 << 21;

/// A value, by its position among all of a pickle.
pub type Id = usize;

/// One value of a pickle.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Bytes of the input: Python's bytes and, from Python 2, its texts.
    Bytes(Range<usize>),
    /// UTF-8 of the input.
    Text(Range<usize>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function or class: "module name".
    Global(String),
    /// What a call would have made: the global, its arguments, and the state that it would have been given.
    Called {
        global: Id,
        arguments: Id,
        state: Option<Id>,
    },
}

/// A pickle that was read to its end.
#[derive(Debug)]
pub struct Pickle<'a> {
    bytes: &'a [u8],
    values: Vec<Value>,
    root: Id,
}

/// A NumPy array of bytes.
pub struct ByteArray<'a> {
    pub shape: Vec<i64>,
    pub data: Cow<'a, [u8]>,
}

impl<'a> Pickle<'a> {
    /// Reads a whole pickle; says what is wrong, and at which byte.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        Ok(Self { bytes, values: machine.values, root })
    }

    pub fn root(&self) -> &Value {
        &self.values[self.root]
    }

    /// The value of a dict under a key that is this text, as Python 2 or 3 wrote it.
    pub fn entry(&self, dict: &Value, key: &str) -> Option<&Value> {
        let Value::Dict(entries) = dict else { return None };
        // Later entries replace earlier ones.
        let entry = entries.iter().rev().find(|(name, _)| self.is_text(&self.values[*name], key));
        entry.map(|(_, value)| &self.values[*value])
    }

    /// The items of a list or tuple.
    pub fn items<'s>(&'s self, value: &'s Value) -> Option<impl ExactSizeIterator<Item = &'s Value>> {
        match value {
            Value::List(items) | Value::Tuple(items) => Some(items.iter().map(|id| &self.values[*id])),
            _ => None,
        }
    }

    /// The array that a value is, if it is one of bytes in C order.
    ///
    /// NumPy makes one by `_reconstruct` and a state of (version, shape, dtype, Fortran order, data), or, from protocol 5 on, by
    /// `_frombuffer` of (data, dtype, shape, order).
    pub fn byte_array(&self, value: &Value) -> Option<ByteArray<'_>> {
        let Value::Called { global, arguments, state } = value else { return None };
        let Value::Global(name) = &self.values[*global] else { return None };
        let tuple = |id: Id| match &self.values[id] {
            Value::Tuple(items) => Some(&items[..]),
            _ => None,
        };
        let (shape, dtype, in_c_order, data) = match (name.rsplit_once(' ')?, state) {
            ((module, "_reconstruct"), Some(state)) if module.ends_with(".multiarray") => {
                let &[_version, shape, dtype, fortran, data] = tuple(*state)? else { return None };
                (
                    shape,
                    dtype,
                    self.values[fortran] == Value::Bool(false) || self.values[fortran] == Value::Int(0),
                    data,
                )
            }
            ((module, "_frombuffer"), None) if module.ends_with(".numeric") => {
                let &[data, dtype, shape, order] = tuple(*arguments)? else { return None };
                (shape, dtype, self.is_text(&self.values[order], "C"), data)
            }
            _ => return None,
        };
        if !in_c_order || !self.is_byte_type(&self.values[dtype]) {
            return None;
        }
        let size = |id: &Id| match self.values[*id] {
            Value::Int(size) => Some(size),
            _ => None,
        };
        let shape = tuple(shape)?.iter().map(size).collect::<Option<_>>()?;
        Some(ByteArray { shape, data: self.content(&self.values[data])? })
    }

    /// Whether a value is `numpy.dtype("u1", ...)`.
    fn is_byte_type(&self, value: &Value) -> bool {
        let Value::Called { global, arguments, .. } = value else { return false };
        let (Value::Global(name), Value::Tuple(arguments)) =
            (&self.values[*global], &self.values[*arguments])
        else {
            return false;
        };
        let first = arguments.first().map(|id| &self.values[*id]);
        name == "numpy dtype"
            && first.is_some_and(|first| self.is_text(first, "u1") || self.is_text(first, "|u1"))
    }

    /// Whether a value is this text, in bytes or as a text.
    fn is_text(&self, value: &Value, text: &str) -> bool {
        match value {
            Value::Bytes(range) | Value::Text(range) => &self.bytes[range.clone()] == text.as_bytes(),
            // No more is decoded than could be equal.
            Value::Called { .. } => {
                let short = self.encoded(value).filter(|range| range.len() <= 2 * text.len());
                short.is_some() && self.content(value).is_some_and(|content| *content == *text.as_bytes())
            }
            _ => false,
        }
    }

    /// The text that a value encodes: Python 3 writes bytes for protocol 2 as `_codecs.encode(text, "latin1")`.
    fn encoded(&self, value: &Value) -> Option<Range<usize>> {
        let Value::Called { global, arguments, state: None } = value else { return None };
        let (Value::Global(name), Value::Tuple(arguments)) =
            (&self.values[*global], &self.values[*arguments])
        else {
            return None;
        };
        let &[text, encoding] = &arguments[..] else { return None };
        match (name.as_str(), &self.values[text], &self.values[encoding]) {
            ("_codecs encode", Value::Text(text), Value::Text(encoding))
                if &self.bytes[encoding.clone()] == b"latin1" =>
            {
                Some(text.clone())
            }
            _ => None,
        }
    }

    /// The bytes that a value stands for.
    fn content(&self, value: &Value) -> Option<Cow<'_, [u8]>> {
        if let Value::Bytes(range) = value {
            return Some(self.bytes[range.clone()].into());
        }
        let text = std::str::from_utf8(&self.bytes[self.encoded(value)?]).ok()?;
        text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect::<Option<Vec<u8>>>().map(Into::into)
    }
}

/// The stack machine.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, String> {
        for _ in 0..MAX_OPERATIONS {
            let begin = self.at;
            let done = self.step().map_err(|reason| format!("{reason}, at byte {begin}"))?;
            if let Some(root) = done {
                return match self.at == self.bytes.len() {
                    true => Ok(root),
                    false => Err(format!("{} bytes after the end of the pickle", self.bytes.len() - self.at)),
                };
            }
        }
        Err(format!("more than {MAX_OPERATIONS} operations"))
    }

    /// One operation; the root at the last one.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let operation = self.take(1)?.start;
        let operation = self.bytes[operation];
        if self.at == 1 && operation != 0x80 {
            return Err("no pickle of protocol 2 or later".into());
        }
        match operation {
            // PROTO, FRAME: nothing to do.
            0x80 => {
                let protocol = self.number(1)?;
                if !(2..=5).contains(&protocol) {
                    return Err(format!("protocol {protocol}, expected 2 to 5"));
                }
            }
            // The length of a frame.
            0x95 => {
                self.take(8)?;
            }
            b'.' => return self.pop().map(Some),
            // Constants and numbers.
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let number = self.number(4)?;
                self.push(Value::Int(i64::from(number as u32 as i32)));
            }
            0x8a => {
                let len = self.number(1)?;
                if len > 8 {
                    return Err(format!("an integer of {len} bytes, expected at most 8"));
                }
                let number = self.number(len as usize)?;
                // Two's complement: the sign fills what is not there.
                let unused = 64 - 8 * len as u32;
                let number = if len == 0 { 0 } else { ((number << unused) as i64) >> unused };
                self.push(Value::Int(number));
            }
            b'G' => {
                let bits = self.number(8)?.swap_bytes();
                self.push(Value::Float(f64::from_bits(bits)));
            }
            // Bytes and texts, by the size of their length field.
            b'U' | b'C' => self.data(1, Value::Bytes)?,
            b'T' | b'B' => self.data(4, Value::Bytes)?,
            0x8e | 0x96 => self.data(8, Value::Bytes)?,
            0x8c => self.data(1, Value::Text)?,
            b'X' => self.data(4, Value::Text)?,
            0x8d => self.data(8, Value::Text)?,
            // Containers.
            b'(' => self.marks.push(self.stack.len()),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.above_mark()?;
                self.push(Value::Tuple(items));
            }
            0x85..=0x87 => {
                let len = usize::from(operation - 0x84);
                let first = self.stack.len().checked_sub(len).ok_or("too few values")?;
                let items = self.stack.split_off(first);
                self.push(Value::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.list()?.push(item);
            }
            b'e' => {
                let items = self.above_mark()?;
                self.list()?.extend(items);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.dict()?.push((key, value));
            }
            b'u' => {
                let items = self.above_mark()?;
                let (pairs, rest) = items.as_chunks();
                if !rest.is_empty() {
                    return Err("a key without a value".into());
                }
                self.dict()?.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            // The memo.
            b'q' => self.remember(1)?,
            b'r' => self.remember(4)?,
            0x94 => {
                let top = self.top()?;
                self.memo.insert(self.memo.len() as u64, top);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            // Calls that are not made.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module} {name}")));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: Id| match &self.values[id] {
                    Value::Text(range) if range.len() <= MAX_NAME => {
                        Ok(String::from_utf8_lossy(&self.bytes[range.clone()]).into_owned())
                    }
                    _ => Err("a global without a name".to_string()),
                };
                let global = format!("{} {}", text(module)?, text(name)?);
                self.push(Value::Global(global));
            }
            b'R' => {
                let (arguments, global) = (self.pop()?, self.pop()?);
                self.push(Value::Called { global, arguments, state: None });
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                match &mut self.values[object] {
                    Value::Called { state: slot, .. } => *slot = Some(state),
                    _ => return Err("a state for what was not made by a call".into()),
                }
            }
            other => return Err(format!("operation {other:#04x}, which data files have no use for")),
        }
        Ok(None)
    }

    fn take(&mut self, len: usize) -> Result<Range<usize>, String> {
        let left = self.bytes.len() - self.at;
        if len > left {
            return Err(format!("{len} bytes expected, {left} are left: the file is cut short"));
        }
        self.at += len;
        Ok(self.at - len..self.at)
    }

    /// A little-endian number of up to 8 bytes.
    fn number(&mut self, len: usize) -> Result<u64, String> {
        let range = self.take(len)?;
        Ok(self.bytes[range].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn integer(&mut self, len: usize) -> Result<(), String> {
        let number = self.number(len)?;
        self.push(Value::Int(number as i64));
        Ok(())
    }

    fn data(&mut self, len: usize, value: fn(Range<usize>) -> Value) -> Result<(), String> {
        let len = self.number(len)?;
        let range = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        self.push(value(range));
        Ok(())
    }

    /// A name ended by a line break.
    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end =
            rest.iter().take(MAX_NAME).position(|byte| *byte == b'\n').ok_or("a name without an end")?;
        let range = self.take(end + 1)?;
        Ok(String::from_utf8_lossy(&self.bytes[range.start..range.end - 1]).into_owned())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    /// Nothing below the last mark may be taken.
    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => Ok(self.stack.pop().expect("the stack is not empty")),
            false => Err("too few values".into()),
        }
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "too few values".into())
    }

    fn above_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("no mark")?;
        match mark <= self.stack.len() {
            true => Ok(self.stack.split_off(mark)),
            false => Err("too few values".into()),
        }
    }

    fn list(&mut self) -> Result<&mut Vec<Id>, String> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(items) => Ok(items),
            _ => Err("an item for what is no list".into()),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Id, Id)>, String> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::Dict(entries) => Ok(entries),
            _ => Err("an entry for what is no dict".into()),
        }
    }

    fn remember(&mut self, len: usize) -> Result<(), String> {
        let (number, top) = (self.number(len)?, self.top()?);
        self.memo.insert(number, top);
        Ok(())
    }

    fn recall(&mut self, len: usize) -> Result<(), String> {
        let number = self.number(len)?;
        let id = self.memo.get(&number).ok_or_else(|| format!("nothing was remembered as {number}"))?;
        self.stack.push(*id);
        Ok(())
    }
}

/// Longest name of a global.
const MAX_NAME: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_called_and_nothing_else_is_understood() {
        // os.system("true"): a value with a name, and no array.
        let pickle = Pickle::parse(b"\x80\x02cos\nsystem\nU\x04true\x85R.").unwrap();
        assert!(matches!(pickle.root(), Value::Called { .. }) && pickle.byte_array(pickle.root()).is_none());
        for (bytes, part) in [
            (&b""[..], "1 bytes expected, 0 are left: the file is cut short, at byte 0"),
            (b"PK\x03\x04", "no pickle of protocol 2 or later, at byte 0"),
            (b"\x80\x09N.", "protocol 9, expected 2 to 5"),
            (b"\x80\x02N", "cut short, at byte 3"),
            (b"\x80\x02N.N", "1 bytes after the end"),
            (b"\x80\x02.", "too few values, at byte 2"),
            (b"\x80\x02N(.", "too few values"),
            (b"\x80\x02e.", "no mark"),
            (b"\x80\x02N(e.", "no list"),
            (b"\x80\x02}(Nu.", "a key without a value"),
            (b"\x80\x02h\x07.", "nothing was remembered as 7"),
            (b"\x80\x02T\xff\xff\xff\x7fabc", "2147483647 bytes expected, 3 are left"),
            (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc", "bytes expected"),
            (b"\x80\x02Nb.", "too few values"),
            (b"\x80\x02NNb.", "a state for what was not made"),
            (b"\x80\x02P1\n.", "operation 0x50"),
            (b"\x80\x02\x8a\x09", "an integer of 9 bytes"),
        ] {
            let error = Pickle::parse(bytes).unwrap_err();
            assert!(error.contains(part), "{bytes:?}: {error}");
        }
        let endless = [b"\x80\x02".to_vec(), b"(".repeat(MAX_OPERATIONS)].concat();
        assert_eq!(Pickle::parse(&endless).unwrap_err(), format!("more than {MAX_OPERATIONS} operations"));
    }

    #[test]
    fn numbers_and_containers_are_read() {
        let pickle =
            Pickle::parse(b"\x80\x02}(U\x01aJ\xfe\xff\xff\xffX\x01\0\0\0b](\x8a\x02\x00\x80M\x01\x02eu.")
                .unwrap();
        assert_eq!(pickle.entry(pickle.root(), "a"), Some(&Value::Int(-2)));
        let list = pickle.entry(pickle.root(), "b").unwrap();
        let items: Vec<&Value> = pickle.items(list).unwrap().collect();
        assert_eq!(items, [&Value::Int(-32768), &Value::Int(513)]);
        assert_eq!(pickle.entry(pickle.root(), "c"), None);
    }
}
