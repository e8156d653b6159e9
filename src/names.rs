//! Enums whose values have names: in recipes, on the command line and in records.

/// A choice written as a name.
pub trait Named: Copy + Sized + 'static {
    const ALL: &'static [(&'static str, Self)];

    /// The value of this name.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Every name, quoted: `"eval" or "train"`.
    fn names() -> String {
        Self::ALL.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ")
    }
}

/// Declares an enum with a name for each variant: `name()`, [`Named`], `Display` and `Serialize` all use it.
macro_rules! named {
    ($(#[$meta:meta])* pub enum $type:ident { $($(#[$doc:meta])* $variant:ident = $name:expr,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$doc])* $variant,)+ }

        impl $type {
            /// The name in recipes and records.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl $crate::names::Named for $type {
            const ALL: &'static [(&'static str, Self)] = &[$(($name, Self::$variant),)+];
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}
pub(crate) use named;

/// Declares a [`named`] enum whose variants are the rows of a table, which have the names.
macro_rules! table {
    ($(#[$meta:meta])* pub enum $type:ident: $row:ty { $($variant:ident = $value:expr,)+ }) => {
        $crate::names::named! {
            $(#[$meta])*
            pub enum $type { $($variant = $value.name,)+ }
        }

        impl $type {
            /// What it is.
            pub fn row(self) -> &'static $row {
                match self { $(Self::$variant => &$value,)+ }
            }
        }
    };
}
pub(crate) use table;
