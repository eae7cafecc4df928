"""A signing key on a PKCS#11 token (OASIS PKCS#11 v2.40): a TPM 2.0 through tpm2-pkcs11, a smart card, SoftHSM.

The key is made on the token and cannot be extracted. Only one thread at a time calls the token.
"""

import ctypes
import hashlib
import logging
import os
import random
import secrets
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from joserfc.jwk import ECKey

from umbel.errors import UmbelError
from umbel_edge.config import KeyConfig
from umbel_edge.waiting import Stopped, back_off

try:
    import pkcs11
    from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass, TokenFlag
    from pkcs11.constants import DEFAULT
    from pkcs11.mechanisms import Mechanism
    from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters
except ImportError as error:
    raise UmbelError(f"a key on a token needs python-pkcs11 ({error}): pip install 'umbel[pkcs11]'") from error

log = logging.getLogger("umbel.agent")

FIRST_PAUSE, LAST_PAUSE = 0.2, 20.0
"""Seconds between two looks for a token that is away."""

_TURN = threading.RLock()
"""Held during every call of a PKCS#11 module, because no other call may run while a module is initialised again."""

_WRONG_PIN = (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange)

# The token sets the attributes of the uses that are not signing: tpm2-pkcs11 refuses values that differ from its own.
_PUBLIC = {Attribute.ENCRYPT: DEFAULT, Attribute.WRAP: DEFAULT}
_PRIVATE = {
    Attribute.DECRYPT: DEFAULT,
    Attribute.UNWRAP: DEFAULT,
    Attribute.DERIVE: False,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
}

T = TypeVar("T")


class Unusable(UmbelError):
    """The token is there, but cannot be used until a person acts."""


class Away(UmbelError):
    """The token does not answer now; it may later."""


class TokenStore:
    """The key with the configured label on the configured token.

    The PIN is read again whenever the token is opened. A PIN that the token refused is not tried again by this process. No PIN
    is tried when only one try is left, so that starting the agent again and again does not lock the token.
    """

    def __init__(self, config: KeyConfig, stopping: threading.Event, patient: bool = True) -> None:
        self._config, self._stopping, self._patient = config, stopping, patient
        self.where = f"token {config.token!r}"
        self._session: Any = None
        self._private: Any = None
        self._public: ec.EllipticCurvePublicKey | None = None
        self._refused_pin: str | None = None
        self._random = random.Random()

    def load(self) -> ECKey | None:
        """The key on the token; raises Unusable, and Away or Stopped when the token stays away."""
        return self._wrapped() if self._patiently(self._find, give_up=Unusable) else None

    def create(self) -> ECKey:
        """Make the key on the token, non-extractable; raises as `load`."""
        self._patiently(self._generate, give_up=Unusable)
        return self._wrapped()

    def sign(self, digest: bytes) -> bytes:
        """The ECDSA signature, r and s in 32 bytes each, of a SHA-256 digest; waits while the token cannot be used."""
        return self._patiently(lambda: self._sign(digest))

    def close(self) -> None:
        """Log out."""
        with _TURN:
            self._forget()

    def _wrapped(self) -> ECKey:
        assert self._public is not None
        public = ECKey.import_key(self._public).as_dict(private=False)
        return ECKey(_OnToken(self, self._public), public)

    def _patiently(self, call: Callable[[], T], give_up: type[Unusable] | tuple[()] = ()) -> T:
        """The result of `call`, made again while it raises Away, or Unusable unless that is in `give_up`; logs that once."""
        said, waited, again = "", 0, True
        while True:
            try:
                with _TURN:
                    made = call()
            except give_up:
                raise
            except (Unusable, Away) as error:
                if again and isinstance(error, Away):
                    again = False  # the session may have ended although the token is there
                    continue
                if not self._patient:
                    raise
                if str(error) != said:
                    said = str(error)
                    log.warning("%s; this device cannot sign, and waits", said)
                self._pause(waited)
                waited += 1
            else:
                if said:
                    log.info("%s is back", self.where)
                return made

    def _pause(self, waited: int) -> None:
        if self._stopping.wait(back_off(waited, FIRST_PAUSE, LAST_PAUSE, self._random)):
            raise Stopped("the agent is stopping")

    def _sign(self, digest: bytes) -> bytes:
        if self._private is None and not self._find():
            raise Unusable(f"{self.where} holds no key {self._config.name!r} any more; restore it, or enrol anew")
        try:
            signature = self._private.sign(digest, mechanism=Mechanism.ECDSA)
        except pkcs11.PKCS11Error as error:
            self._forget()
            raise Away(f"{self.where} does not sign ({_name(error)})") from error
        return bytes(signature)

    def _find(self) -> bool:
        """Find the key on the token and keep its handles; returns whether there is one. Raises Unusable if it can be extracted."""
        name = self._config.name
        try:
            session = self._opened()
            private = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label=name)
            if private[Attribute.EXTRACTABLE] or not private[Attribute.SENSITIVE]:
                raise Unusable(
                    f"the key {name!r} on {self.where} can be extracted from it; set another name in [key] to make a new key"
                )
            half = session.get_key(object_class=ObjectClass.PUBLIC_KEY, id=private[Attribute.ID])
            public = serialization.load_der_public_key(encode_ec_public_key(half))
        except pkcs11.NoSuchKey:
            return False
        except pkcs11.MultipleObjectsReturned as error:
            raise Unusable(
                f"{self.where} holds several keys {name!r}; remove those that are not this device's"
            ) from error
        except pkcs11.PKCS11Error as error:
            self._forget()
            raise Away(f"{self.where} does not answer ({_name(error)})") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Unusable(
                f"the key {name!r} on {self.where} is not an EC P-256 key; set another name in [key]"
            ) from error
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise Unusable(f"the key {name!r} on {self.where} is not an EC P-256 key; set another name in [key]")
        if self._public is not None and public != self._public:
            self._finish()  # so that the right token is found once it is put in
            raise Unusable(f"{self.where} holds another key {name!r} than this device's; put the right one in")
        self._private, self._public = private, public
        return True

    def _generate(self) -> None:
        try:
            session = self._opened()
            curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
            session.create_domain_parameters(KeyType.EC, curve, local=True).generate_keypair(
                id=secrets.token_bytes(8),
                label=self._config.name,
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                public_template=_PUBLIC,
                private_template=_PRIVATE,
            )
        except pkcs11.PKCS11Error as error:
            self._forget()
            raise Unusable(f"{self.where} cannot make an EC P-256 key that only signs ({_name(error)})") from error
        if not self._find():
            raise Unusable(f"{self.where} has made a key {self._config.name!r} but does not find it")

    def _opened(self) -> Any:
        if self._session is None:
            self._session = self._open()
        return self._session

    def _open(self) -> Any:
        pin = self._pin()
        if pin == self._refused_pin:
            raise Unusable(f"{self.where} refuses the PIN; correct it, and the agent tries the new one")
        try:
            token = self.library().get_token(token_label=self._config.token)
            self.check(token.flags)
            try:
                return token.open(rw=True, user_pin=pin)
            except pkcs11.UserAlreadyLoggedIn:
                return token.open(rw=True)  # another session of this process has logged in
        except pkcs11.MultipleTokensReturned as error:
            raise Unusable(f"several tokens have the label {self._config.token!r}; give each another label") from error
        except _WRONG_PIN as error:
            self._refused_pin = pin
            raise Unusable(f"{self.where} refuses the PIN; correct it") from error
        except pkcs11.PinLocked as error:
            raise Unusable(f"{self.where} is locked after wrong PINs; unlock it with its own tool") from error
        except pkcs11.PKCS11Error as error:
            self._finish()
            raise Away(f"{self.where} is not there ({_name(error)})") from error

    def check(self, flags: TokenFlag) -> None:
        """Raise Unusable for a token whose PIN is locked, or would be locked by one more wrong try."""
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise Unusable(f"{self.where} is locked after wrong PINs; unlock it with its own tool")
        if flags & TokenFlag.USER_PIN_FINAL_TRY:
            raise Unusable(
                f"{self.where} allows one more try of the PIN, which the agent does not take: log in with the token's own tool"
            )

    def library(self) -> Any:
        """The configured module, loaded; raises Unusable."""
        module = self._config.module
        if module is None or not module.is_file():
            raise Unusable(f"{module}: no such PKCS#11 module; correct [key] module")
        try:
            # RTLD_DEEPBIND binds the module to its own libraries: TensorFlow exports another libcrypto to the whole process,
            # and SoftHSM crashes with it.
            ctypes.CDLL(str(module), mode=os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0))
        except OSError as error:
            raise Unusable(f"{module} cannot be loaded as a PKCS#11 module: {error}") from error
        return pkcs11.lib(str(module))

    def _pin(self) -> str:
        path = self._config.pin_file
        if path is None:
            pin = os.environ.get(self._config.pin_env, "")
            if not pin:
                raise Unusable(f"${self._config.pin_env} is not set; it should hold the PIN of {self.where}")
            return pin
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise Unusable(f"{path}: other users can read the PIN in this file; run 'chmod 600' on it")
            pin = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable(f"{path}: the PIN of {self.where} cannot be read: {error}") from error
        if not pin:
            raise Unusable(f"{path}: the file is empty; it should hold the PIN of {self.where}")
        return pin

    def _forget(self) -> None:
        """Close the session, which may have ended already."""
        session, self._session, self._private = self._session, None, None
        if session is not None:
            with suppress(pkcs11.PKCS11Error):
                session.close()

    def _finish(self) -> None:
        """Finalise the module, so that it looks for its tokens again; the next use initialises it."""
        self._forget()
        with suppress(pkcs11.PKCS11Error):
            pkcs11.lib(str(self._config.module)).finalize()


class _OnToken(ec.EllipticCurvePrivateKey):
    """A private key for `cryptography` and `joserfc` that can only sign with SHA-256."""

    def __init__(self, store: TokenStore, public: ec.EllipticCurvePublicKey) -> None:
        self._store, self._public = store, public

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        if not isinstance(signature_algorithm.algorithm, hashes.SHA256):
            raise UnsupportedAlgorithm("a key on a token signs SHA-256 digests that it makes itself")
        raw = self._store.sign(hashlib.sha256(data).digest())
        half = len(raw) // 2
        return utils.encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        self._stays()

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        self._stays()

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        self._stays()

    def __copy__(self) -> "_OnToken":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "_OnToken":
        return self

    def _stays(self) -> NoReturn:
        raise UnsupportedAlgorithm("the key stays on its token, which only signs with it")


def _name(error: BaseException) -> str:
    """The error's PKCS#11 name, because these errors have no texts."""
    return str(error) or type(error).__name__
