"""How a checkpoint lies in a file: read by NumPy, zipfile and safetensors, with sizes beyond 4 GiB."""

from __future__ import annotations

import base64
import json
import sys
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
from conftest import run_python, same_bits

import rmsprop_native as rms
from rmsprop_native import content, fileformats
from rmsprop_native.content import ArraySpec
from rmsprop_native.fileformats import Npz, Safetensors, dumps, loads


@pytest.fixture
def state(rng):
    """Of all dtypes and orders, with an odd number of float32 before float64."""
    params = {
        "c": rng.standard_normal((3, 5)).astype(np.float32),
        "f": np.asfortranarray(rng.standard_normal((3, 4))),
        "turned": np.moveaxis(rng.standard_normal((2, 3, 4)), 0, 1),
        "z": rng.standard_normal((2, 3, 2)).view(complex)[..., 0].T,
        "z8": np.ones(3, np.complex64),
        "scalar": np.array(2.0),
        "empty": np.zeros((0, 3), np.float32),
    }
    state = rms.init(params, momentum=0.9, accumulate=2, overrides={"c": {"lr": np.array([0.5, 0.25, 0.1, 0.2, 0.3])}})
    rms.update_(params, {key: np.ones(p.shape, p.dtype) for key, p in params.items()}, state)
    for tree in (state.square_avg, state.momentum_buffer):
        for array in tree.values():
            array[...] = np.abs(rng.standard_normal(array.shape))
    return state


def expected(state):
    return state.state_dict()["arrays"]


def test_numpy_and_zipfile_read_an_npz_file(tmp_path, state):
    path = tmp_path / "a.npz"
    rms.save(path, state)
    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found}
    header = json.loads(bytes(arrays.pop("header")))
    assert arrays.keys() == expected(state).keys()
    assert all(same_bits(array, arrays[name]) for name, array in expected(state).items())
    assert arrays["square_avg/1"].flags.f_contiguous
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        crcs = {info.filename.removesuffix(".npy"): info.CRC for info in archive.infolist()}
    assert {name: int(crc, 16) for name, crc in header["arrays"]} == {k: c for k, c in crcs.items() if k != "header"}


def test_safetensors_reads_a_safetensors_file(tmp_path, state):
    path = tmp_path / "a.safetensors"
    rms.save(path, state)
    found = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    header = json.loads(metadata["rmsprop_native"])
    assert int(metadata["crc32"], 16) == zlib.crc32(metadata["rmsprop_native"].encode())
    assert found.keys() == expected(state).keys()
    for name, array in expected(state).items():
        values = found[name].view(array.dtype)[..., 0] if array.dtype.kind == "c" else found[name]
        assert same_bits(values, array)
        assert int(dict(header["arrays"])[name], 16) == zlib.crc32(np.ascontiguousarray(array).tobytes())
    start = path.read_bytes()
    entries = json.loads(start[8 : 8 + int.from_bytes(start[:8], "little")])
    for name, entry in entries.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % (4 if entry["dtype"] == "F32" else 8) == 0


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_machine_of_the_other_byte_order(tmp_path, state, suffix, monkeypatch):
    """Files are little-endian; here they are made of the order that this machine has not."""
    rms.save(tmp_path / f"little.{suffix}", state)
    monkeypatch.setattr(fileformats, "_ORDER", ">" if sys.byteorder == "little" else "<")
    path = tmp_path / f"a.{suffix}"
    rms.save(path, state)
    assert path.read_bytes() != (tmp_path / f"little.{suffix}").read_bytes()
    arrays = expected(rms.load(path))
    assert all(same_bits(array, arrays[name]) for name, array in expected(state).items())
    if suffix == "npz":
        with np.load(path) as found:
            assert all((found[name] == array).all() for name, array in expected(state).items())


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_the_same_state_gives_the_same_bytes(tmp_path, state, suffix):
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    rms.save(paths[0], state)
    rms.save(paths[1], rms.load(paths[0]))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_members_beyond_4_gib(tmp_path):
    """A file with a hole in it: the large member is not read, the one behind it is."""
    large = ArraySpec("square_avg/0", np.dtype(float), (5 << 27,), (0,))
    small = ArraySpec("square_avg/1", np.dtype(np.float32), (3,), (0,))
    values = np.arange(3, dtype=np.float32)
    layout = Npz([large, small], b"{}")
    place = layout.places[small.name]
    crcs = {large.name: 0, small.name: zlib.crc32(values.tobytes(), place.first_crc)}
    with open(tmp_path / "a.npz", "wb") as file:
        file.write(layout.start(b"{}"))
        file.write(layout.before(large.name, 0))
        file.seek(place.start)
        file.write(layout.before(small.name, crcs[small.name]) + values.tobytes() + layout.after(b"{}", crcs))
    assert (tmp_path / "a.npz").stat().st_size == layout.size > 5 << 30
    with np.load(tmp_path / "a.npz") as found:
        assert same_bits(found["square_avg/1"], values)
        assert found.zip.getinfo("square_avg/0.npy").file_size == (5 << 30) + 128
        assert found.zip.getinfo("square_avg/1.npy").header_offset > 5 << 30


def test_more_members_than_a_small_archive_counts(tmp_path):
    state = rms.init([np.zeros(1, np.float32) for _ in range(66_000)])
    path = tmp_path / "a.npz"
    rms.save(path, state)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 66_001
    assert rms.load(path).step == 0


def test_a_header_that_is_too_large_is_refused(tmp_path):
    text = dumps({"a": "x" * 100_000_000})
    with pytest.raises(ValueError, match="can have 100000000 bytes of header, this one needs"):
        Safetensors([], text)
    state = rms.init({"x" * 10_000_000: {str(i): np.zeros(1) for i in range(7)}})
    with pytest.raises(ValueError, match=r"the header of so many leaves needs \d+ bytes, and 67108864 can be saved"):
        rms.save(tmp_path / "a.npz", state)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[NaN]", b"[" * 100_000, b"1" * 10_000, b'{"a": 1}}'])
def test_what_is_no_json(text):
    with pytest.raises(ValueError, match=r"its header is (no JSON|nested too deep)"):
        loads(text)


def test_brackets_in_strings_are_no_nesting():
    keys = {"[" * 100: 1, "\\": 2, '\\"[' * 100: 3}
    assert loads(dumps(keys)) == keys


def test_numbers_keep_their_bits():
    numbers = [0.1, 1 / 3, -0.0, 5e-324, sys.float_info.max, 2**53]
    assert [repr(n) for n in loads(dumps(numbers))] == [repr(n) for n in numbers]


def test_no_package_is_needed_for_safetensors(tmp_path, state):
    path = tmp_path / "a.safetensors"
    rms.save(path, state)
    code = """
import sys
sys.modules["safetensors"] = None
import rmsprop_native as rms
from rmsprop_native import content, fileformats
rms.save(sys.argv[1], rms.load(sys.argv[1]))
"""
    before = path.read_bytes()
    run_python(code, path)
    assert path.read_bytes() == before


# ---- what earlier versions wrote ----


def state_of_version_1():
    params = {"w": np.zeros((2, 3), np.float32, order="F"), "b": [np.zeros(1, complex), None]}
    rates = {"w": {"lr": np.array([0.5, 0.25, 1.0])}}
    state = rms.init(params, lr=0.1, rho=0.75, momentum=0.5, accumulate=2, overrides=rates)
    grads = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [np.array([1 - 2j]), None]}
    for _ in range(3):
        rms.update_(params, grads, state)
    return state


# Of `state_of_version_1`, compressed, in base 85.
VERSION_1 = {
    "npz": (
        "c-qZY&5ImG6t9h&akCKFgMkD*OzJW&^sfD}vpX}G?1B(6!LW)RbXl6}?&_IN`pfF-$*$u-{129R$-#rclP3}JCg?GE5HaUK{)B*d"
        "@uIJ)yLYC0dN$E`*n**|-p8-r@4c!wy?f)O#Wj?T%jk!5kH7yrAIs=fG@!(xY(0z*7tjjoE@pPc{Kd@=-`)La0S(cp<<P`ttzNVB"
        "S*o>^X3LEjXCyQu1^^(xM*M_=JQ<Lf!v6Jc+fY`O=D7Kv$MOinDFNZQhgp!sEQ-yLaBoPP2`8Ll1rI4pyePyyO~FyjVVU6G2>T58"
        ")OC=tK_pgNZ3WX9R2p4VJ92G$Vd6Q|Og>?N@5<<L5Ct^kX&`*SC8P<bEE*o`eFkpk#3~otu%(PT#{$bEiD^fSQJc%~a=90J+#^05"
        "ni57$GVF_!R0ZFmUVp$%huY*Y7r{D8W1l)^Sy_Zi4!pqolum;1z1SQQKLt^k`hG46A%i7B-;XQ^VOmaXI}K7_q_n3)b^=mpq7V#2"
        "SHulEEJ{H7!fp&YNIruULR$Cs@ExpVc^_fIm<SYhZ>Ufsc_YBa*dLGg_hHXjYV(v)>F0Ph$BOjF76$zu_9=0(TzCoS^pXt1p~6f^"
        "hVtwYjtL*Yc>==WhvG2o`VrxVK6SjV7~n+?q>rYku;DaJB9>=xtQ-Sb>*^Gg9R*N^15NKtp=lGWStLo4#`0Dsx4k$PS3{l7vy<s4"
        "4P`JAO=K<0Wu7>7bCYP@%`M4$a%H5ht#8n_)h1P)2D&Xv?^;?{mAc}xnpWz%Gy^u=Zil#9yVgJ;=v`uL5W|rMeMTHJNdxKX7*y45"
        "o0c`gM|Ess*;{bx{&=_4bo!TWHHxOQ1WiZKD_YL|+^U#sTh5zq=eb(Wi#8l+Iaw4>wzK)Se15uJX7usi&G!pNE5K;FIRBE_Mjf*c"
        "SXv^cD^24CspZU8b`ZLI6@Fp{b`N*T%#OZW9nE2;70ixu>!TBy+1loF6-`tAA7=Avb>Z9l+XbTwz-Z<{obH05o$9Yl@5=SBS5KmM"
        "YO8jy^VXjb^Y%MmKKKjfpUSj;Rh~R5XuSfoCQaycmun|~S9kMreN`z}{Npd@Yk8gW*Yz}iUFhfC8w+RF(7aE|*U)4L$@B;2#hDMx"
        "VpK89{}@%w$^Xa2nOl%9)+3fXb`^29f6pSneYPIC+%Zo;)(Yfmg)cYik;|Q{iae)}%?AF*9QbnQcozKJ=zo8?9=`m7tMJwLJR9~m"
        "OZB+r7c>`lZoHqLD{vbPC6`U`5n8Iu56@)td&|dulJTYU*?vLF&Nhk&ih<BS2_$_9"
    ),
    "safetensors": (
        "c-oa!!H&}~5Zx1JK4Fz}Se!IXnjY9nNJxCcwlYpKX)TgC*iKnkRpJ{sbAT^_BS$`gPvF9Z%QCi;ZJXUaG?Hb{yqTAoH*Wgo$(em_"
        "JW6ZOtYDf^>dkLFS*uoxmNrcDEqHV9X6cne)=V$G`EmrGE6p@4J%8zKK`Jg93<}T^twuwkh3S>Vom?2d+z5M4rf5KG0s?qOX3nC#"
        "QM>@E-bwSel2r;2sYMNq?rNK95*tt&q}U$BR1%ZvLF54B=l}`Dfh*%o(OgIgxppNF2yeLNtil31CV{f;+P;$@^d9(nqiF#-`*7z("
        "OLT1o1s%b6rL${Z^N(;?P{muiWmRXKO;=TeuR)bZu5~3cEaw<udEV7sWrd%IM!A~pQPE&{Q<_e|PRxvpt!?zq;5aCWA{*(iuCOnh"
        "-Y_HFnUuBx<9SZ(WYvbXhU#jv+U-^=<I%Fqbtj?cD0q(Z@_RNEc<Esrnia4T&-Tcbi3!JkEEa6I^=@5VSV+tC#@68|3;m&W{gjnp"
        "dJ-O&7Wxyzz^+|>;1gqNXq1qH_B;QOHoG7r;#|}?%IhGU9dieV%n$K8NucfTzIw~s)?PSrG_7L50UB4NV>XHp)3_5oNT=b1#A&b6"
        "{z49TK8q6u<USr)97s7MNjj)J{4i+Nl_d->$tGD6Ml5(F$T4MM5|+6U+y<>BE2!$~o+1q(NlB25QJ0&>K}J|&s#xtj-^(Qu;Ws6V"
        "gOrgd#T#i`HXj~42*h5+5k^||?Va;I`*9LwsX!|;0zZsan0VOp;{<`Za$|}x@*`q6?zMa(QAGS{Y>4)apU5zc{UjW<bF2p{w&$=H"
        "eaw-Bei}d2&Z$Ic><1w^>gQAn%=d!`2edoK$NkIvzI6Mqe*bgN{ycm6_xASo^7WT*|8W0)9C!A^ZJ%D?Lf_K`?zny~dVKM~I&-n+"
        "yy)Y<F8%`>dn)h"
    ),
}


def state_of_version_2():
    params = {"w": np.zeros((2, 3), np.float32, order="F"), "b": [np.zeros(1, np.float32), None]}
    state = rms.init(params, lr=0.1, rho=0.75, momentum=0.5, square_avg_dtype="bfloat16", seed=2**63)
    grads = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [np.array([0.1], np.float32), None]}
    for _ in range(3):
        rms.update_(params, grads, state)
    return state


# Of `state_of_version_2`.
VERSION_2 = {
    "npz": (
        "c-p;H%Wl&^6rIpEKv!L)q6-#bgp?w=C3fDSqAd%MK%j0|ps2DY_9U_Ji}5&Z2-#F!Ay~1g_yL6A7g!;&V!;YNf-hhL+;QwA&I?2<MzZG4eVn"
        "=H&dl}Ry@kaM)E`&SmmeRSzrwMMQm93VPT8jIb`od>{aon#Mf0l%5AW|iN}x9CW_0RlEK^Nqp80Y{N@p4l<BZs<!vFyEw~6Ud(0eW7QdqB-D"
        "|zXfl<uYfc`SD^>|zm)tC(4y%N$p=2{+m_?Qy~>mT;Rg&v0y9RV3`V97GRSyVzv7n%$Ho%vz3+N(Bj17fdqU$d&_HHEhq&sp>spfZqtR$ChJ"
        "JoBNiCfe@Q|oHD09u$v6R)S*|X)?i5))dz~YK|ED+7^4~w(hK#5ZE%B_u&GZNRY|)kcFIclfEvvfS9Pk9PN)Le@m-VZYTOv5N)8RncuI#!n1"
        "-viiRpvN_DwU?*igZkqG>vHNMTe@G|jhsQ<Ss{MWYspERGG1c0=S1HY|>SH2b9=a!_^NafP|wFdf3>qOej?j*6n>awR33E0zoSQmIhRmU{pS"
        "r^cZ6a2~aNaOKR`xX%EgR>QiXaV*vF0f5x;{yvB%B@G-1h6gq!ri1jTa1)w#0NKSZ;Vno<Kt!npndKCbnYf_frbs!6B8NdtR+3@CsqHx|tY}"
        "Xf0M$3MbD`uBpb40OA$4&z2f|~+bwy#aqebtpp<;HBiGU!Ck&YJ>WLW3xB8xI9mh(!U1ms6-GT7vjUV<{$16y=U)w<tkP!<I1MN*LqN_nb-K"
        "p<MNl9#C{d~Yw-Iqu$SJ&!ua3UrRqw4(m;BJ_^tsr_TiSN^JhC{j9i%Km{+YCE;_W+%1V+Ksd6-uZTE1{*nIa};_Xodp~Dl)Vtxe7F(ku)g~"
        "CYs6s{I7}RPMC2q4IhjkOk^g_kg3!&ES9ip>9nRv5)BC<_yq`yJa8Acz$njawJA-pdz7|vx=Qhx+|L$cp96~et7haqA3rAxdGyWpSF(=>W+Q"
        "j>;E>1^|zm7S`a)dnoRxT_}M~>gwapV~{cx~baf1Uv!zcYV=A7np%gWe@0_+(NFb;E5CS{j=_CHiyw{2(rnwl4P9i9olMj1q|kLcakt$DKz"
    ),
    "safetensors": (
        "c-oCrL2{cg6wRhRK@Q;2WJyyH#K!JS<8+aA_qInP;A3kl5S4@zH{&Dp0=+;^(Yy6an3y<8ThB1)zyI`jypQ$u-I@PA5XLI7yx^8IMrIF0SEk"
        "XbVKuj63uHzfmZVg=;&w@9%aiuVSZ-lSf+g94HbT`%qFAZMVqvht?NZ}Cyo?an8|BxND=eUKga|%_X;(2(8&Lo=-?e*M$)y48RH}m7ww2%MH"
        "r8M)Xtf=1q{hu`!0a120-&K7K$+l%<w|SFZD+afh+0^|B^qeC2FAB*|I83ucOcdq%L>T(?g_+7wT*;=owT2<^LtT=A22i|MZ>mSwhpXYDSNE"
        "Oluw|wR2kZN-r;%PR;~2G&s?Zb@ncujNUuxxCg3OL#>LnDn2vA83cG7MN>)n6Z8Yu};KQ0y8pjhF#^dxVnM|(IFx@+OoU_Imxydb7j&60E+g"
        "3ZJ#R4M{InFM?)t#5imSnYZr37B$+AoE19D0hQaqx7HZo7xz2h?!8@kTqzqjB#$rk(E%_vnHKu~Xpp-Tp9$Txp>;O80Zv2SeHHGW;Lm=$Y&*"
        "qFo-)AP~FdH_<dc%<$RRdIXcMJBMD3Yt47&5aV%9A3JZ!xJbr%(ML7tN50RaY)Uf<hkpN0U|Cz1pbsLb0polUzCr4gCh@e4io%grdlHab=P|"
        "{DfT!g&3n3-@;HA7fI(&RcyhVD@#nz95_yb0jr2%XFE7N54ica*lPV`cRCIL;I%rLE?!k61<{4Xms4U+IgB>IcUD?XAiNa$+6AC26Z`uXR@+"
        "+Ej)ySv{1x|pAxonN2NALr*co15RC{s1ya$~6"
    ),
}


@pytest.mark.parametrize("suffix", VERSION_1)
@pytest.mark.parametrize(
    ("version", "files", "made"), [(1, VERSION_1, state_of_version_1), (2, VERSION_2, state_of_version_2)]
)
def test_files_of_earlier_versions_are_read(tmp_path, suffix, version, files, made):
    """And written, byte for byte, as long as that is the version. A change of the format needs another one."""
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(zlib.decompress(base64.b85decode(files[suffix])))
    loaded, now = rms.load(path).state_dict(), made().state_dict()
    arrays, arrays_now = loaded.pop("arrays"), now.pop("arrays")
    assert loaded == now
    assert all(same_bits(array, arrays_now[name]) for name, array in arrays.items())
    rms.save(tmp_path / f"b.{suffix}", made())
    assert version != content.VERSION or (tmp_path / f"b.{suffix}").read_bytes() == path.read_bytes()
