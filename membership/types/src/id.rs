//! Numbers and names that have a meaning: each is a type of its own, so that none can stand for another.

use alloc::{boxed::Box, string::String, sync::Arc};
use core::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};

/// One running process: a *node* in one *incarnation*.
///
/// `node` says which machine, container or name it is (a hash of its name; equal for all incarnations of
/// it), `inc` is drawn afresh at every start. Only the pair names a member: a restarted process is a new,
/// junior node. Written `1f.9f2`, both parts in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u64)", into = "(u32, u64)")]
pub struct NodeId {
    node: u32,
    inc: u64,
}

impl NodeId {
    /// Incarnations stay below this bound (2^53), so that JSON readers that compute in doubles keep them.
    pub const INC_BOUND: u64 = 1 << 53;

    /// A node id; `inc` is reduced below [`NodeId::INC_BOUND`].
    pub const fn new(node: u32, inc: u64) -> Self {
        Self { node, inc: inc % Self::INC_BOUND }
    }

    /// The part that is equal for all incarnations of one name.
    pub const fn node(self) -> u32 {
        self.node
    }

    /// The part that is fresh at every start.
    pub const fn inc(self) -> u64 {
        self.inc
    }
}

impl From<(u32, u64)> for NodeId {
    fn from((node, inc): (u32, u64)) -> Self {
        Self::new(node, inc)
    }
}

impl From<NodeId> for (u32, u64) {
    fn from(id: NodeId) -> Self {
        (id.node, id.inc)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}", self.node, self.inc)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not two hexadecimal numbers with a dot between them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a node id: expected NODE.INCARNATION in hexadecimal, such as 1f.9f2")]
pub struct ParseNodeIdError;

impl FromStr for NodeId {
    type Err = ParseNodeIdError;
    fn from_str(text: &str) -> Result<Self, ParseNodeIdError> {
        let (node, inc) = text.split_once('.').ok_or(ParseNodeIdError)?;
        let node = u32::from_str_radix(node, 16).map_err(|_| ParseNodeIdError)?;
        let inc = u64::from_str_radix(inc, 16).map_err(|_| ParseNodeIdError)?;
        if inc >= Self::INC_BOUND {
            return Err(ParseNodeIdError);
        }
        Ok(Self { node, inc })
    }
}

/// Names one view, of the cluster or of a group: one counter numbers them all.
///
/// Ids grow for ever within a lineage and stay below 2^53.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ViewId(u64);

impl ViewId {
    /// "No view": the predecessor of a first view, the floor of one who has seen none.
    pub const NONE: Self = Self(0);
    /// View ids stay below this bound (2^53): scripts and JSON readers compare doubles.
    pub const BOUND: u64 = 1 << 53;

    /// The view with this number.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The following id, or `None` at [`ViewId::BOUND`]: the coordinator stops rather than wraps.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).filter(|&id| id < Self::BOUND).map(Self)
    }
}

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A fencing token: the id of the view in which the present reign began.
///
/// Others' joining or leaving does not change it. Resources compare the number and refuse a lower one,
/// and an equal one of another [`Lineage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(ViewId);

impl Token {
    /// The token of a reign that began in `view`.
    pub const fn new(view: ViewId) -> Self {
        Self(view)
    }

    /// The view in which the reign began.
    pub const fn view(self) -> ViewId {
        self.0
    }

    /// The number that resources compare.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position in a view. Rank 0 leads; rank is order of joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(u32);

impl Rank {
    /// The leader's rank.
    pub const LEADER: Self = Self(0);

    /// The rank of the member at `position` of a view's list.
    pub fn at(position: usize) -> Self {
        Self(u32::try_from(position).expect("a view has fewer than 2^32 members"))
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of an entry in the cluster's log; the founding entry has index 1, "nothing yet" is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogIndex(u64);

impl LogIndex {
    /// Before the first entry.
    pub const ZERO: Self = Self(0);

    /// The entry at this position.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The following position.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 entries take longer than the universe has"))
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An attempt to coordinate: a round, and who makes it. Totally ordered; no two nodes share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u64, NodeId)", into = "(u64, NodeId)")]
pub struct Ballot {
    /// Grows with every attempt.
    pub round: u64,
    /// Who coordinates under this ballot.
    pub node: NodeId,
}

impl From<(u64, NodeId)> for Ballot {
    fn from((round, node): (u64, NodeId)) -> Self {
        Self { round, node }
    }
}

impl From<Ballot> for (u64, NodeId) {
    fn from(ballot: Ballot) -> Self {
        (ballot.round, ballot.node)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.round, self.node)
    }
}

/// One founding of a cluster. All view ids live inside a lineage, and the lineage goes with every token.
///
/// Ordered by age: the elder is the smaller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Lineage {
    founded_s: u64,
    random: u64,
}

impl Lineage {
    /// The lineage founded `founded_s` seconds after the start of 2020 (by the founder's wall clock), made
    /// unique by 64 random bits.
    pub const fn new(founded_s: u64, random: u64) -> Self {
        Self { founded_s, random }
    }

    /// Seconds between the start of 2020 and the founding.
    pub const fn founded_s(self) -> u64 {
        self.founded_s
    }
}

impl From<(u64, u64)> for Lineage {
    fn from((founded_s, random): (u64, u64)) -> Self {
        Self { founded_s, random }
    }
}

impl From<Lineage> for (u64, u64) {
    fn from(lineage: Lineage) -> Self {
        (lineage.founded_s, lineage.random)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:016x}", self.founded_s, self.random)
    }
}

/// The text is not what a lineage is written as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a lineage: expected FOUNDED-RANDOM in lower-case hexadecimal, such as 1f-00000000000009f2")]
pub struct ParseLineageError;

impl FromStr for Lineage {
    type Err = ParseLineageError;

    /// Reads what is written, and nothing else: a lineage has one text.
    fn from_str(text: &str) -> Result<Self, ParseLineageError> {
        let (founded_s, random) = text.split_once('-').ok_or(ParseLineageError)?;
        let padded = founded_s.len() > 1 && founded_s.starts_with('0');
        if padded || random.len() != 16 {
            return Err(ParseLineageError);
        }
        let number = |digits| hex(digits).ok_or(ParseLineageError);
        Ok(Self::new(number(founded_s)?, number(random)?))
    }
}

/// The number that is written with these lower-case hexadecimal digits, no more than 16.
pub(crate) fn hex(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if digits && text.len() <= 16 { u64::from_str_radix(text, 16).ok() } else { None }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a group: 1 to 128 characters out of `A-Z a-z 0-9 . _ : / -`.
///
/// Cheap to clone, and one word large: it is in every view, event and map.
#[derive(Clone, PartialEq, Eq)]
pub struct GroupName(Arc<Text>);

/// A sized type, unlike `str`, so that one word leads to it.
#[derive(PartialEq, Eq)]
enum Text {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Box<str>),
}

/// What fits beside a length in three words.
const SHORT: usize = 22;

impl Text {
    fn new(text: &str) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(room), Ok(len)) => {
                room.copy_from_slice(text.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(text) => text.as_bytes(),
        }
    }
}

/// The name is empty, too long, or has a character that group names may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a group name has 1 to 128 characters out of A-Z a-z 0-9 . _ : / -")]
pub struct InvalidGroupName;

impl GroupName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 128;

    /// The name, once it has been checked.
    ///
    /// # Errors
    /// [`InvalidGroupName`] says what a name may be.
    pub fn new(name: &str) -> Result<Self, InvalidGroupName> {
        let fits = (1..=Self::MAX_LEN).contains(&name.len());
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
        let checked = fits && name.bytes().all(allowed);
        if checked { Ok(Self(Arc::new(Text::new(name)))) } else { Err(InvalidGroupName) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.0.bytes()).expect("it was made of text")
    }
}

/// As text is ordered.
impl Ord for GroupName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.bytes().cmp(other.0.bytes())
    }
}

impl PartialOrd for GroupName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// As text is hashed: digests of entries depend on it.
impl Hash for GroupName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl TryFrom<String> for GroupName {
    type Error = InvalidGroupName;
    fn try_from(name: String) -> Result<Self, InvalidGroupName> {
        Self::new(&name)
    }
}

impl Serialize for GroupName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for GroupName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = GroupName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a group")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<GroupName, E> {
                GroupName::new(name).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Name)
    }
}

impl FromStr for GroupName {
    type Err = InvalidGroupName;
    fn from_str(name: &str) -> Result<Self, InvalidGroupName> {
        Self::new(name)
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl fmt::Debug for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec::Vec};

    #[test]
    fn a_node_id_survives_its_text() {
        let id = NodeId::new(0x1f, u64::MAX);
        assert!(id.inc() < NodeId::INC_BOUND);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "1", "1.", ".1", "g.1", "1.20000000000000", "1.1.1", "+1.-1"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_lineage_has_one_text() {
        for lineage in [Lineage::new(0, 0), Lineage::new(0x1f, 7), Lineage::new(u64::MAX, u64::MAX)] {
            assert_eq!(lineage.to_string().parse(), Ok(lineage));
        }
        for bad in [
            "",
            "-",
            "1f",
            "1f-7",
            "-0000000000000007",
            "01f-0000000000000007",
            "1F-0000000000000007",
            "+1-0000000000000007",
            "1f-+000000000000007",
            "1f-000000000000000G",
            "1f-0000000000000007-",
            "11111111111111111-0000000000000007",
        ] {
            assert_eq!(bad.parse::<Lineage>(), Err(ParseLineageError), "{bad}");
        }
    }

    #[test]
    fn view_ids_stop_before_doubles_lose_them() {
        assert_eq!(ViewId::NONE.next(), Some(ViewId::new(1)));
        assert_eq!(ViewId::new(ViewId::BOUND - 1).next(), None);
        assert_eq!(ViewId::new(u64::MAX).next(), None);
    }

    #[test]
    fn group_names_are_checked_at_the_door() {
        assert!(GroupName::new("inventory-a/1.x:y_z").is_ok());
        let long = "x".repeat(129);
        for bad in ["", "with space", "new\nline", "\u{e9}", long.as_str()] {
            assert!(GroupName::new(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<GroupName>("\"a b\"").is_err());
    }

    #[test]
    fn group_names_of_all_lengths_are_the_text_that_they_were_made_of() {
        let text = "a:b/".repeat(32);
        let names: Vec<GroupName> = (1..=128).map(|n| text[..n].parse().expect("a name")).collect();
        for (n, name) in names.iter().enumerate() {
            assert_eq!(name.as_str(), &text[..=n]);
            assert_eq!(name.to_string(), text[..=n]);
            assert_eq!(Ok(name), GroupName::new(name.as_str()).as_ref());
        }
        assert!(names.is_sorted(), "as their texts are");
        assert_eq!(size_of::<GroupName>(), size_of::<usize>());
    }
}
