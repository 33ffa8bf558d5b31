//! The PROXY protocol, versions 1 and 2: a balancer that forwards bytes tells whose they are.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// "the 12-byte signature" of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// "the maximum line lengths the receiver must support including the CRLF" of version 1.
const LINE_BYTES_MAX: usize = 107;
/// The shortest header of all: `PROXY UNKNOWN\r\n`.
const HEADER_BYTES_MIN: usize = 15;
/// Addresses and what a balancer adds about them; certificates of clients are the largest of it.
const BLOCK_BYTES_MAX: usize = 4096;

/// Reads the header at the beginning of a connection, and nothing behind it. None: the balancer speaks for itself, or
/// does not know whose the bytes are.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut start = [0; HEADER_BYTES_MIN];
    stream.read_exact(&mut start).await?;
    if start.starts_with(SIGNATURE) {
        return read_version_2(stream, [start[12], start[13], start[14]]).await;
    }
    if !start.starts_with(b"PROXY ") {
        return Err(invalid("there is no PROXY header"));
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES_MAX {
            return Err(invalid("the line of the PROXY header is too long"));
        }
        // Byte by byte, since what follows belongs to the connection.
        line.push(stream.read_u8().await?);
    }
    let line = std::str::from_utf8(&line[..line.len() - 2]).map_err(|_| invalid("the PROXY header is not text"))?;
    parse_version_1(line)
}

fn parse_version_1(line: &str) -> io::Result<Option<SocketAddr>> {
    let words: Vec<_> = line.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, _, port, _] => {
            let address: IpAddr = source.parse().map_err(|_| invalid("the PROXY header has no source address"))?;
            let port: u16 = port.parse().map_err(|_| invalid("the PROXY header has no source port"))?;
            if address.is_ipv4() != (family == "TCP4") {
                return Err(invalid("the PROXY header's address is of another family"));
            }
            Ok(Some((address, port).into()))
        }
        _ => Err(invalid("the PROXY header cannot be understood")),
    }
}

async fn read_version_2(stream: &mut (impl AsyncRead + Unpin), start: [u8; 3]) -> io::Result<Option<SocketAddr>> {
    let [command, family, length_high] = start;
    let length = usize::from(u16::from_be_bytes([length_high, stream.read_u8().await?]));
    if length > BLOCK_BYTES_MAX {
        return Err(invalid("the PROXY header is too long"));
    }
    let mut block = vec![0; length];
    stream.read_exact(&mut block).await?;
    match command {
        // LOCAL: "the connection was established on purpose by the proxy without being relayed".
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(invalid("the PROXY header is of an unknown version or command")),
    }
    match (family, &block[..]) {
        (0x11, [a, b, c, d, _, _, _, _, high, low, ..]) => {
            let port = u16::from_be_bytes([*high, *low]);
            Ok(Some((Ipv4Addr::new(*a, *b, *c, *d), port).into()))
        }
        (0x21, block) if block.len() >= 36 => {
            let source = <[u8; 16]>::try_from(&block[..16]).map_err(|_| invalid("the PROXY header is too short"))?;
            let port = u16::from_be_bytes([block[32], block[33]]);
            Ok(Some((Ipv6Addr::from(source), port).into()))
        }
        (0x11 | 0x21, _) => Err(invalid("the PROXY header is too short")),
        // "AF_UNSPEC", datagrams, unix sockets: "the receiver is expected to accept the connection".
        _ => Ok(None),
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::{any, proptest};

    fn read(bytes: &[u8]) -> (std::io::Result<Option<SocketAddr>>, usize) {
        let mut rest = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let outcome = runtime.block_on(super::read(&mut rest));
        (outcome, rest.len())
    }

    fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [super::SIGNATURE.as_slice(), &[command, family], &length, block, b"GET"].concat()
    }

    /// Both versions and both families give the source, and leave what follows alone.
    #[test]
    fn gives_the_source() {
        let v4 = "192.0.2.7:56324".parse().unwrap();
        let v6 = "[2001:db8::7]:56324".parse().unwrap();
        let ports = [0xdc, 0x04, 0x01, 0xbb];
        let four = [&[192, 0, 2, 7, 10, 0, 0, 1][..], &ports].concat();
        let six = [&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets()[..], &[0; 16], &ports, &[4, 0, 0]];
        for (bytes, expected) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\nGET".to_vec(), Some(v4)),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\nGET".to_vec(), Some(v6)),
            (b"PROXY UNKNOWN\r\nGET".to_vec(), None),
            (b"PROXY UNKNOWN ff:: ff:: 1 2\r\nGET".to_vec(), None),
            (version_2(0x21, 0x11, &four), Some(v4)),
            (version_2(0x21, 0x21, &six.concat()), Some(v6)),
            (version_2(0x20, 0x11, &four), None),
            (version_2(0x20, 0x00, &[]), None),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ] {
            let (found, rest) = read(&bytes);
            assert_eq!((found.unwrap(), rest), (expected, 3), "{}", bytes.escape_ascii());
        }
    }

    /// What is no header is refused.
    #[test]
    fn refuses_nonsense() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for wrong in [
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 99999 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 10.0".to_vec(),
            long.into_bytes(),
            version_2(0x21, 0x11, &[1, 2, 3]),
            version_2(0x21, 0x21, &[0; 35]),
            version_2(0x31, 0x11, &[0; 12]),
            version_2(0x21, 0x11, &[0; 5000]),
        ] {
            assert!(read(&wrong).0.is_err(), "{}", wrong.escape_ascii());
        }
    }

    proptest! {
        /// No bytes cause a panic, in neither version.
        #[test]
        fn survives_anything(bytes in any::<Vec<u8>>(), command in any::<u8>(), family in any::<u8>()) {
            let _ = read(&bytes);
            let _ = read(&[b"PROXY ", &bytes[..]].concat());
            let _ = read(&version_2(command, family, &bytes));
        }
    }
}
