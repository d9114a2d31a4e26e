import { useNavigation } from "../src/index.js";

/** DotMac's navigation, as a portal would have it. */
export function Navigation() {
  return (
    <nav>
      {useNavigation().map(({ id, label }) => (
        <span key={id}>{label}</span>
      ))}
    </nav>
  );
}
