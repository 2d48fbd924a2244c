package podstead

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"strings"
	"testing"
)

// globals lists the package variables that may change, with the reason.
var globals = map[string]string{}

// TestNothingIsGlobal looks for what makes packages depend on who used them
// before: init functions, and package variables that are assigned to, or whose
// address is taken. Tables that are only read are welcome.
func TestNothingIsGlobal(t *testing.T) {
	found := map[string]bool{}
	for _, p := range packages(t) {
		if isTestHelper(p.ImportPath) {
			continue
		}
		for _, g := range changing(t, p) {
			name := p.ImportPath + "." + g.name
			found[name] = true
			if globals[name] == "" {
				t.Errorf("%s: %s %s", g.at, g.name, g.why)
			}
		}
	}
	for name := range globals {
		if !found[name] {
			t.Errorf("%s is excused without need", name)
		}
	}
}

// global is an init function or a package variable that changes.
type global struct {
	name, why string
	at        token.Position
}

// changing reads the source of a package. Imports are not followed, so what is
// known of types is only what the package itself says.
func changing(t *testing.T, p pkg) []global {
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	conf := types.Config{FakeImportC: true, Error: func(error) {}} // of what it cannot import
	checked, _ := conf.Check(p.ImportPath, fset, files, info)

	var out []global
	note := func(e ast.Expr, why string) {
		id := variable(e)
		if id == nil {
			return
		}
		if v, ok := info.Uses[id].(*types.Var); ok && v.Parent() == checked.Scope() {
			out = append(out, global{id.Name, why, fset.Position(id.Pos())})
		}
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					out = append(out, global{"init", "runs unasked", fset.Position(n.Pos())})
				}
			case *ast.AssignStmt:
				for _, e := range n.Lhs {
					note(e, "is assigned to")
				}
			case *ast.IncDecStmt:
				note(n.X, "is counted")
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					note(n.X, "has its address taken")
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "delete" || f.Name == "clear") && len(n.Args) > 0 {
					note(n.Args[0], "is emptied")
				}
			}
			return true
		})
		out = append(out, shared(fset, f)...)
	}
	return out
}

// variable returns the variable that an expression is a part of, as in
// v.field[i], or nil.
func variable(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// shared returns package variables that exist to be changed: locks, atomics.
func shared(fset *token.FileSet, f *ast.File) []global {
	var out []global
	for _, d := range f.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok || decl.Tok != token.VAR {
			continue
		}
		for _, s := range decl.Specs {
			spec := s.(*ast.ValueSpec)
			for _, name := range spec.Names {
				if why := changes(spec); why != "" {
					out = append(out, global{name.Name, why, fset.Position(name.Pos())})
				}
			}
		}
	}
	return out
}

func changes(spec *ast.ValueSpec) string {
	why := ""
	ast.Inspect(spec, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if from, ok := s.X.(*ast.Ident); ok && (from.Name == "sync" || from.Name == "atomic") {
				why = "is a " + strings.Join([]string{from.Name, s.Sel.Name}, ".")
			}
		}
		return true
	})
	return why
}
