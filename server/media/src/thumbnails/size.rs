//! The sizes that thumbnails have.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#thumbnails>

/// How a picture is made to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It keeps its proportions, and fits into the size.
    Scale,
    /// It gets the proportions of the size; what is over is cut off.
    Crop,
}

impl Method {
    /// Its name in the specification.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Scale => "scale",
            Self::Crop => "crop",
        }
    }
}

/// The size that is asked for, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// The width.
    pub width: u32,
    /// The height.
    pub height: u32,
    /// How it is to fit.
    pub method: Method,
}

/// A size that thumbnails are made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) method: Method,
}

/// Those of the specification, and smaller ones. From small to large.
const SCALE: [(u32, u32); 5] = [(32, 32), (96, 96), (320, 240), (640, 480), (800, 600)];
/// Those of the specification, and larger ones, of the usual proportions. From small to large.
const CROP: [(u32, u32); 8] =
    [(32, 32), (96, 96), (320, 240), (320, 320), (640, 480), (640, 640), (800, 600), (800, 800)];

impl Size {
    /// The size that is made: the smallest that is not smaller than asked for, so that there are few of each picture. Of a
    /// crop, the one whose proportions are nearest.
    pub(crate) fn target(self) -> Target {
        let Self { width, height, method } = self;
        let covers = |&(w, h): &(u32, u32)| w >= width && h >= height;
        let (w, h) = match method {
            Method::Scale => SCALE.into_iter().find(covers).unwrap_or(SCALE[SCALE.len() - 1]),
            Method::Crop => {
                let farness = |&(w, h): &(u32, u32)| {
                    // Products instead of quotients: 800 times the largest number is far from the end of u64.
                    (u64::from(w) * u64::from(height)).abs_diff(u64::from(h) * u64::from(width)) / u64::from(w.max(h))
                };
                let covering = CROP.into_iter().filter(covers).min_by_key(farness);
                covering.unwrap_or_else(|| if width.abs_diff(height) < width / 8 { (800, 800) } else { (800, 600) })
            }
        };
        Target { width: w, height: h, method }
    }
}

#[cfg(test)]
mod tests {
    use super::{Method, Size};

    /// A thumbnail is not smaller than what is asked for, as far as there is such a size; a crop has its proportions.
    #[test]
    fn sizes_are_few() {
        let of = |width, height, method| {
            let target = Size { width, height, method }.target();
            (target.width, target.height)
        };
        assert_eq!(of(1, 1, Method::Crop), (32, 32));
        assert_eq!(of(33, 30, Method::Crop), (96, 96));
        assert_eq!(of(200, 200, Method::Crop), (320, 320));
        assert_eq!(of(300, 220, Method::Crop), (320, 240));
        assert_eq!(of(640, 480, Method::Crop), (640, 480));
        assert_eq!(of(2000, 2000, Method::Crop), (800, 800));
        assert_eq!(of(u32::MAX, 1, Method::Crop), (800, 600));
        assert_eq!(of(0, 0, Method::Scale), (32, 32));
        assert_eq!(of(97, 10, Method::Scale), (320, 240));
        assert_eq!(of(320, 240, Method::Scale), (320, 240));
        assert_eq!(of(320, 241, Method::Scale), (640, 480));
        assert_eq!(of(u32::MAX, u32::MAX, Method::Scale), (800, 600));
    }
}
