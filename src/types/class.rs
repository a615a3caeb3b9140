//! Priority classes, the most urgent first.

use std::fmt;
use std::ops::{Index, IndexMut};

/// How urgent a topic's artifacts are. A more urgent class overtakes the others at every hop inside the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Consensus stops without it. Bodies of every size are pushed.
    Critical,
    /// Shares and votes.
    High,
    /// User messages.
    Normal,
    /// State and other large transfers.
    Bulk,
}

impl Class {
    /// Every class, the most urgent first.
    pub const ALL: [Class; 4] = [Class::Critical, Class::High, Class::Normal, Class::Bulk];

    /// `Critical` and `High`: small as a rule, and waited for.
    pub fn is_urgent(self) -> bool {
        self <= Class::High
    }

    /// 0 for `Critical` to 3 for `Bulk`.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Critical => "critical",
            Class::High => "high",
            Class::Normal => "normal",
            Class::Bulk => "bulk",
        })
    }
}

/// A set of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Classes(u8);

impl Classes {
    /// None.
    pub const NONE: Classes = Classes(0);
    /// All four.
    pub const ALL: Classes = Classes(0b1111);

    /// Those for which `holds`.
    pub fn that(mut holds: impl FnMut(Class) -> bool) -> Classes {
        Class::ALL.into_iter().filter(|class| holds(*class)).fold(Classes::NONE, Classes::with)
    }

    /// `class` and what is more urgent.
    pub fn down_to(class: Class) -> Classes {
        Classes::that(|other| other <= class)
    }

    /// These and `class`.
    pub const fn with(self, class: Class) -> Classes {
        Classes(self.0 | 1 << class as u8)
    }

    /// These but for `class`.
    pub fn without(self, class: Class) -> Classes {
        Classes(self.0 & !(1 << class.index()))
    }

    /// Whether `class` is one.
    pub fn has(self, class: Class) -> bool {
        self.0 & 1 << class.index() != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// One value per class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerClass<T>(pub [T; 4]);

impl<T> PerClass<T> {
    /// Builds the value of each class.
    pub fn from_fn(make: impl FnMut(Class) -> T) -> PerClass<T> {
        PerClass(Class::ALL.map(make))
    }
}

impl<T> Index<Class> for PerClass<T> {
    type Output = T;
    fn index(&self, class: Class) -> &T {
        &self.0[class.index()]
    }
}

impl<T> IndexMut<Class> for PerClass<T> {
    fn index_mut(&mut self, class: Class) -> &mut T {
        &mut self.0[class.index()]
    }
}
