// What the recipe for React Native takes of it (docs/CLIENTS.md).

const listeners = new Set();

export const AppState = {
  listeners,
  addEventListener(name, listener) {
    const one = (state) => listener(state);
    listeners.add(one);
    return { remove: () => listeners.delete(one) };
  },
  become: (state) => listeners.forEach((listener) => listener(state)),
};

const kept = new Map();

/** As AsyncStorage: everything takes a while. */
const soon = (value) => new Promise((resolve) => setTimeout(resolve, 5, value));
export const storage = {
  getItem: (key) => soon(kept.get(key) ?? null),
  setItem: (key, value) => soon(kept.set(key, value)),
  removeItem: (key) => soon(kept.delete(key)),
};
export default storage;
