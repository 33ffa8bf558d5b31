//! Decoding, turning, shrinking and encoding pictures. What is decoded comes from anybody: nothing is believed but what
//! the bytes themselves say, and the bounds are checked before memory is taken.

use std::{
    fs::File,
    io::{BufReader, Cursor},
};

use image::{
    DynamicImage, ImageDecoder as _, ImageError, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder,
    imageops::FilterType,
};

use super::size::{Method, Target};

/// Of what is lost by it, nobody sees anything at these sizes.
const JPEG_QUALITY: u8 = 80;
/// Bytes of memory that decoding a pixel may take: four colours of 16 bits.
const PIXEL_BYTES: u64 = 8;

/// How large a picture may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) pixels_max: u64,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Rendered {
    /// "When the content is smaller than the requested dimensions, servers should return the original content rather than
    /// thumbnail it."
    Original {
        content_type: &'static str,
    },
    Smaller {
        content_type: &'static str,
        bytes: Vec<u8>,
    },
}

/// Why nothing came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unrendered {
    TooLarge,
    Nonsense(String),
}

impl From<ImageError> for Unrendered {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Limits(_) => Self::TooLarge,
            error => Self::Nonsense(error.to_string()),
        }
    }
}

/// Makes a picture smaller. Takes its time: not for threads that others wait for.
pub(super) fn render(file: File, target: Target, bounds: Bounds) -> Result<Rendered, Unrendered> {
    let nonsense = |error: std::io::Error| Unrendered::Nonsense(error.to_string());
    // What the uploader says it is does not count.
    let mut reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(nonsense)?;
    let format = reader.format().ok_or_else(|| Unrendered::Nonsense("it is no picture that we know".to_owned()))?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(bounds.pixels_max.saturating_mul(PIXEL_BYTES));
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > bounds.pixels_max {
        return Err(Unrendered::TooLarge);
    }
    let orientation = decoder.orientation()?;
    // Of a picture that moves, this is the first frame.
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);

    let fits = picture.width() <= target.width && picture.height() <= target.height;
    // A picture that moves would be an animated thumbnail.
    if fits && matches!(format, ImageFormat::Png | ImageFormat::Jpeg) && target.method == Method::Scale {
        return Ok(Rendered::Original { content_type: format.to_mime_type() });
    }
    encode(&shrunk(picture, target))
}

fn shrunk(picture: DynamicImage, Target { width, height, method }: Target) -> DynamicImage {
    // "Servers MUST NOT upscale thumbnails under any circumstance."
    match method {
        Method::Scale if picture.width() <= width && picture.height() <= height => picture,
        Method::Scale => picture.resize(width, height, FilterType::Triangle),
        Method::Crop => {
            let (w, h) = cropped(picture.width(), picture.height(), width, height);
            picture.resize_to_fill(w, h, FilterType::Triangle)
        }
    }
}

/// The largest size of the target's proportions that is larger neither than the target nor than the picture.
fn cropped(width: u32, height: u32, target_width: u32, target_height: u32) -> (u32, u32) {
    if width >= target_width && height >= target_height {
        return (target_width, target_height);
    }
    let (w, h) = (u64::from(target_width), u64::from(target_height));
    let by_width = (u64::from(width), u64::from(width) * h / w);
    let (w, h) = if by_width.1 <= u64::from(height) && by_width.0 <= w {
        by_width
    } else {
        (u64::from(height) * w / h, u64::from(height))
    };
    let small = |side: u64| u32::try_from(side.max(1)).unwrap_or(1);
    (small(w).min(target_width), small(h).min(target_height))
}

/// Only the pixels are written, so that where and with what it was taken stays behind.
fn encode(picture: &DynamicImage) -> Result<Rendered, Unrendered> {
    let mut bytes = Cursor::new(Vec::new());
    if picture.color().has_alpha() {
        DynamicImage::from(picture.to_rgba8()).write_to(&mut bytes, ImageFormat::Png)?;
        return Ok(Rendered::Smaller { content_type: "image/png", bytes: bytes.into_inner() });
    }
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(&picture.to_rgb8())?;
    Ok(Rendered::Smaller { content_type: "image/jpeg", bytes: bytes.into_inner() })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Cursor, Seek as _, Write as _},
    };

    use image::{
        DynamicImage, Frame, GenericImageView as _, ImageEncoder as _, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage,
        codecs::{gif::GifEncoder, jpeg::JpegEncoder},
    };

    use super::{Bounds, Rendered, Unrendered, cropped, render};
    use crate::thumbnails::size::{Method, Target};

    const BOUNDS: Bounds = Bounds { pixels_max: 1_000_000 };
    const SCALE: Target = Target { width: 32, height: 32, method: Method::Scale };
    const CROP: Target = Target { width: 32, height: 32, method: Method::Crop };

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
        // Red on the left, blue on the right.
        let pixels =
            RgbImage::from_fn(width, height, |x, _| if x < width / 2 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) });
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(pixels).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn smaller(bytes: &[u8], target: Target) -> (&'static str, DynamicImage) {
        match render(file(bytes), target, BOUNDS).unwrap() {
            Rendered::Smaller { content_type, bytes } => (content_type, image::load_from_memory(&bytes).unwrap()),
            original @ Rendered::Original { .. } => panic!("{original:?}"),
        }
    }

    /// Every format becomes smaller, in its proportions or in those that are asked for.
    #[test]
    fn pictures_become_smaller() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP] {
            let bytes = picture(200, 100, format);
            let (_, scaled) = smaller(&bytes, SCALE);
            assert_eq!(scaled.dimensions(), (32, 16), "{format:?}");
            let (_, filled) = smaller(&bytes, CROP);
            assert_eq!(filled.dimensions(), (32, 32), "{format:?}");
            let (left, right) = (filled.get_pixel(2, 16), filled.get_pixel(29, 16));
            assert!(left[0] > 200 && left[2] < 60 && right[2] > 200 && right[0] < 60, "{format:?} {left:?} {right:?}");
        }
        let see_through = RgbaImage::from_pixel(64, 64, Rgba([0, 255, 0, 100]));
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(see_through).write_to(&mut bytes, ImageFormat::Png).unwrap();
        let (content_type, thumbnail) = smaller(bytes.get_ref(), SCALE);
        assert_eq!((content_type, thumbnail.get_pixel(5, 5)), ("image/png", Rgba([0, 255, 0, 100])));
    }

    /// Nothing is made larger than it is.
    #[test]
    fn small_pictures_stay() {
        let small = picture(20, 10, ImageFormat::Png);
        let original = render(file(&small), SCALE, BOUNDS).unwrap();
        assert!(matches!(original, Rendered::Original { content_type: "image/png" }));
        assert_eq!(smaller(&small, CROP).1.dimensions(), (10, 10));
        assert_eq!(smaller(&picture(20, 10, ImageFormat::Gif), SCALE).1.dimensions(), (20, 10));
        assert_eq!(cropped(10, 1000, 320, 240), (10, 7));
        assert_eq!(cropped(1000, 1, 320, 240), (1, 1));
    }

    /// A picture that moves becomes one that does not.
    #[test]
    fn animations_stand_still() {
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new(&mut bytes);
        for colour in [[255, 0, 0, 255], [0, 0, 255, 255]] {
            encoder.encode_frame(Frame::new(RgbaImage::from_pixel(40, 40, Rgba(colour)))).unwrap();
        }
        drop(encoder);
        let (content_type, thumbnail) = smaller(&bytes, SCALE);
        assert_eq!((content_type, thumbnail.dimensions()), ("image/png", (32, 32)));
        assert_eq!(thumbnail.get_pixel(5, 5), Rgba([255, 0, 0, 255]));
    }

    /// A picture that was taken with the camera on its side stands upright, and nothing tells where it was taken.
    #[test]
    fn orientation_is_honoured_and_left_out() {
        // TIFF, little-endian, with one entry: orientation (0x0112), SHORT, 6: turn by 90 degrees.
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let pixels = image::load_from_memory(&picture(200, 100, ImageFormat::Png)).unwrap().to_rgb8();
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new(&mut bytes);
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
        encoder.encode_image(&pixels).unwrap();
        let target = Target { width: 32, height: 32, method: Method::Scale };
        let Rendered::Smaller { bytes: thumbnail, .. } = render(file(&bytes), target, BOUNDS).unwrap() else {
            panic!("it is larger");
        };
        let upright = image::load_from_memory(&thumbnail).unwrap();
        assert_eq!(upright.dimensions(), (16, 32));
        assert!(upright.get_pixel(8, 3)[0] > 200 && upright.get_pixel(8, 28)[2] > 200);
        assert!(bytes.windows(4).any(|window| window == b"Exif"));
        assert!(!thumbnail.windows(4).any(|window| window == b"Exif"));
    }

    /// Bombs, halves and what is no picture are refused, and cost nothing.
    #[test]
    fn bad_files_are_refused() {
        // A few bytes that claim 30,000 by 30,000 pixels.
        let mut bomb = picture(64, 64, ImageFormat::Png);
        bomb[16..20].copy_from_slice(&30_000_u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&30_000_u32.to_be_bytes());
        assert!(render(file(&bomb), SCALE, BOUNDS).is_err());
        let mut gif = picture(64, 64, ImageFormat::Gif);
        gif[6..10].copy_from_slice(&[0xff; 4]);
        assert!(render(file(&gif), SCALE, BOUNDS).is_err());
        let large = picture(1001, 1000, ImageFormat::Png);
        assert_eq!(render(file(&large), SCALE, BOUNDS).unwrap_err(), Unrendered::TooLarge);
        for format in [ImageFormat::Png, ImageFormat::Gif, ImageFormat::WebP] {
            let bytes = picture(200, 100, format);
            let half = render(file(&bytes[..bytes.len() / 2]), SCALE, BOUNDS);
            assert!(matches!(half, Err(Unrendered::Nonsense(_))), "{format:?}: {half:?}");
        }
        for nothing in [&b""[..], b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a", b"\x89PNG\r\n\x1a\n"] {
            assert!(matches!(render(file(nothing), SCALE, BOUNDS), Err(Unrendered::Nonsense(_))), "{nothing:?}");
        }
    }
}
