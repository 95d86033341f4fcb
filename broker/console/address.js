// The address of the view that is shown, where a view keeps what can be shared and survives a reload.

let shown = location.hash;

/** The view that the address names is being shown. */
export function arrive() {
  shown = location.hash;
}

/**
 * Keep `address`, which is that of the view that is shown, with what it wants to keep. Nothing if the reader has left:
 * a new address is there at once, and the event that tells of it later, so a timer of the view before may end between.
 */
export function keep(address) {
  if (location.hash !== shown) return;
  history.replaceState(null, "", address);
  shown = location.hash;
}
