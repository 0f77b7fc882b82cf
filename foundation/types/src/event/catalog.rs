//! How the catalog is written down: once per event, for the compiler and for the page
//! docs/protocols/events.md alike.

use super::upcast::Shape;

/// A place where events of a type stand, and the role that writes them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// A glob over segments, such as `tenant_*.apps`.
    pub segment: &'static str,
    /// The role, by the name that `tabbify <role>` has for it.
    pub writer: &'static str,
}

/// A field of an event's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its type in Rust.
    pub shape: &'static str,
    /// What `serde` is told about it, such as `flatten`.
    pub serde: &'static str,
    /// What it says.
    pub says: &'static str,
}

/// What the catalog knows about a type of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// The type as it stands in the log.
    pub kind: &'static str,
    /// The version of the shape that is written.
    pub version: u16,
    /// What has happened.
    pub says: &'static str,
    /// What the events are filed under.
    pub key: &'static str,
    /// Where they stand; more than one place if they are copied or reported.
    pub homes: &'static [Home],
    /// What they carry.
    pub fields: &'static [Field],
}

/// The newest shape of a type of the catalog.
pub trait Listed: Shape {
    /// The type as it stands in the log.
    const KIND: &'static str;
    /// All that the catalog knows about it.
    const ABOUT: &'static About;
}

/// Declares events of version 1: `Name = "type" at [homes] key "what" { field: Type => "says", }`.
macro_rules! events {
    ($(
        $(#[doc = $says:literal])+
        $name:ident = $kind:literal at [$($home:ident),+] key $key:literal {
            $($(#[serde($($serde:tt)+)])? $field:ident: $shape:ty => $field_says:literal,)+
        }
    )+) => {$(
        $(#[doc = $says])+
        #[doc = concat!("\n", "Type `", $kind, "`; key: ", $key, ".")]
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $(
                #[doc = $field_says]
                $(#[serde($($serde)+)])?
                pub $field: $shape,
            )+
        }

        impl $crate::event::upcast::Shape for $name {
            const VERSION: u16 = 1;
            type Before = $crate::event::upcast::Nothing;
            fn upcast(before: Self::Before) -> Self {
                match before {}
            }
        }

        impl $crate::event::Listed for $name {
            const KIND: &'static str = $kind;
            const ABOUT: &'static $crate::event::About = &$crate::event::About {
                kind: $kind,
                version: <Self as $crate::event::upcast::Shape>::VERSION,
                says: concat!($($says),+),
                key: $key,
                homes: &[$($home),+],
                fields: &[$($crate::event::Field {
                    name: stringify!($field),
                    shape: stringify!($shape),
                    serde: concat!($(stringify!($($serde)+))?),
                    says: $field_says,
                }),+],
            };
        }
    )+};
}

/// Makes the enum of all events from the newest shape of each: `module => [Name, …]`.
macro_rules! catalog {
    ($($module:ident => [$($name:ident),+ $(,)?])+) => {
        /// Every event of the catalog, as its newest shape.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Event {
            $($(
                #[doc = concat!("[`", stringify!($module), "::", stringify!($name), "`]")]
                $name($module::$name),
            )+)+
        }

        impl Event {
            /// What is known about every type, in the order of the log's segments.
            pub const CATALOG: &'static [&'static About] = &[$($(<$module::$name as Listed>::ABOUT,)+)+];

            /// Every type name of the catalog.
            pub const KINDS: &'static [&'static str] = &[$($(<$module::$name as Listed>::KIND,)+)+];

            /// What the catalog knows about the type.
            #[must_use]
            pub const fn about(&self) -> &'static About {
                match self { $($(Self::$name(_) => <$module::$name as Listed>::ABOUT,)+)+ }
            }

            fn to_json(&self) -> serde_json::Result<Box<RawValue>> {
                match self { $($(Self::$name(data) => serde_json::value::to_raw_value(data),)+)+ }
            }

            /// Reads an event of any released version. `None` for a type that is not in the
            /// catalog: one of an app's own (`x.<name>`), or of a newer Tabbify.
            ///
            /// # Errors
            /// [`EventError`] for a known type of unknown version or with data of another shape.
            pub fn decode(kind: &str, version: u16, data: &str) -> Result<Option<Self>, EventError> {
                match kind {
                    $($(<$module::$name as Listed>::KIND => upcast::read(kind, version, data)
                        .map(|data| Some(Self::$name(data))),)+)+
                    _ => Ok(None),
                }
            }
        }

        $($(impl From<$module::$name> for Event {
            fn from(data: $module::$name) -> Self {
                Self::$name(data)
            }
        })+)+
    };
}
