//! One declaration for a section: the type, its defaults, and the text above each key.

/// One setting of a section, as `config generate` shows it.
pub(super) struct Setting {
    /// The key.
    pub(super) key: &'static str,
    /// The lines of its doc comment.
    pub(super) docs: &'static [&'static str],
    /// Its value; none if it is unset.
    pub(super) value: Option<toml::Value>,
    /// What a value may look like, in TOML, for a setting that is unset by default.
    pub(super) example: Option<&'static str>,
}

/// A group of settings that can describe itself.
pub(super) trait Section {
    /// The lines of the section's doc comment.
    const ABOUT: &'static [&'static str];

    /// Every setting with its present value, in the order of declaration.
    fn settings(&self) -> Vec<Setting>;
}

/// Declares a section: a struct whose fields each have a doc comment, a default and, if the default is none, an
/// example behind `=>`.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                pub $field:ident : $type:ty = $default:expr $(=> $example:literal)?,
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $doc])*
                pub $field: $type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::config::section::Section for $name {
            const ABOUT: &'static [&'static str] = &[$($about),*];

            fn settings(&self) -> Vec<$crate::config::section::Setting> {
                vec![$(
                    $crate::config::section::Setting {
                        key: stringify!($field),
                        docs: &[$($doc),*],
                        // A setting that is unset has no form in TOML, and is shown by its example.
                        value: toml::Value::try_from(&self.$field).ok(),
                        example: None$(.or(Some($example)))?,
                    },
                )*]
            }
        }
    };
}

pub(super) use section;
